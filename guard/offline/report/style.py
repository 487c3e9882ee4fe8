"""The page's style sheet: its colours differ for the colour-blind too, and no meaning rests on a colour alone."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1.5rem; color: #1b1f24; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; } h2 { font-size: 1.2rem; margin: 2.8rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .2rem; }
p { max-width: 60rem; } p.lead { font-size: 1.05rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-top: .6rem; min-width: 40rem; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid #e3e8ed; vertical-align: top; }
th:first-child, td:first-child { text-align: left; min-width: 13rem; }
th { font-weight: 600; vertical-align: bottom; border-bottom: 2px solid #8c959f; }
tr.groups th { text-align: center; border-bottom: none; color: #59636e; font-weight: 500; }
td.first, th.first { border-left: 1px solid #c6cdd5; padding-left: 1rem; }
table.close { font-size: .87rem; } table.close th, table.close td { padding: .3rem .4rem; }
table.close th:first-child, table.close td:first-child { min-width: 11rem; }
td small { display: block; color: #59636e; white-space: nowrap; }
td small.inline { display: inline; white-space: normal; }
td b { font-weight: 600; }
.full { background: #cfe4f5; } .most { background: #e6f1fa; } .some { background: #fdf4dc; }
.few { background: #fbe0c8; }
.bad { color: #a3330a; font-weight: 600; } .note { color: #59636e; }
ul.flags { background: #fdf1e7; border-left: 4px solid #c0510c; padding: .8rem 1rem .8rem 2rem; max-width: 58rem; }
ul.flags li { margin: .2rem 0; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.tile { border: 1px solid #d0d7de; border-radius: 6px; padding: .7rem 1rem; flex: 1 1 10rem; max-width: 19rem; }
.tile b { display: block; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile small { color: #59636e; display: block; line-height: 1.35; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: #59636e; max-width: 60rem; margin-top: .3rem; }
details { margin: .8rem 0; } summary { cursor: pointer; color: #0b5cad; }
.key span { padding: .05rem .5rem; margin-right: .5rem; }
@media print { details > * { display: block; } }
"""
