"""Templates of a report's page, which are Jinja2 files: `page.html` is the whole, `cells.html` what all share."""
