"""A summary of a bundle in plain text, as `guard inspect` prints it."""

from __future__ import annotations

import textwrap

from guard.bundle import ANSWER_CALIBRATION, Bundle
from guard.calibration import smallest_rate
from guard.choice_text import choice_text
from guard.feature_values import feature_text
from guard.features import only_names
from guard.manifest import InputSpec, Manifest, OutputSpec
from guard.signature import read_envelope
from guard.signing import TrustedKey, short


def summarise(bundle: Bundle, *, verified_by: TrustedKey | None = None) -> str:
    """Summarise a bundle as plain text for 80 columns; `verified_by` is the key that its signature was verified by."""
    manifest, calibration = bundle.manifest, bundle.calibration
    model, spec = manifest.model, manifest.model.input
    smallest = smallest_rate(calibration.items)
    shape = ", ".join(map(str, spec.wire_shape))
    lines = [
        f"bundle      {bundle.path}",
        f"digest      {bundle.digest[:16]}",
        f"guard       {bundle.identity[:16]}: its programs and calibration; reports name it",
        *signed_lines(bundle, verified_by),
        *beside_lines(bundle),
        f"model       {model.name}{':' + model.version if model.version else ''}, fingerprint {model.fingerprint[:16]}",
        f"input       {spec.name} {spec.datatype} [item, {shape}], values {min(spec.low):g} to {max(spec.high):g}"
        + (f", {spec.grid + 1} levels" if spec.grid else ""),
        *own_ranges(spec),
        *feature_lines(spec),
        f"output      {model.output.name}, {model.output.in_words}",
        *classes_in_order(model.output),
        *served_lines(manifest),
        *student_lines(manifest, holds_answers=(bundle.path / ANSWER_CALIBRATION).is_file()),
        *second_lines(manifest),
        *choice_lines(manifest),
        *fusion_lines(manifest),
        f"promise     {manifest.reject_rate:.3g} of clean items rejected, {manifest.flag_rate:.3g} flagged or rejected",
        f"            on {calibration.items} clean items; they can promise {smallest:.3g} at least",
        f"repairs     {', '.join(repair.expression for repair in manifest.repairs) or 'none'}",
        f"recipe      {manifest.recipe.get('name', '')}, seed {manifest.seed}",
        *source_lines(manifest),
        *parent_lines(manifest),
        *made_lines(manifest),
        *cut_lines(manifest),
        "",
        *program_lines(manifest),
    ]
    lines += ["", "detectors"]
    for detector in manifest.detectors:
        lines += wrap(f"  {detector.expression}")
    return "\n".join(lines)


def signed_lines(bundle: Bundle, verified_by: TrustedKey | None) -> list[str]:
    """Lines on the signature: which key it names, and whether that was verified."""
    envelope = read_envelope(bundle.path)
    if verified_by is not None:
        text = f"by the key {short(verified_by.id)} ({verified_by.file}), verified"
    elif envelope is None:
        text = "no"
    else:
        text = f"by the key {short(envelope.key_hint) or 'that it does not name'}, not verified: --trusted-key does"
    return textwrap.wrap(text, width=80, initial_indent="signed      ", subsequent_indent=" " * 12)


def beside_lines(bundle: Bundle) -> list[str]:
    """Lines on what lies in the directory and is no part of the bundle."""
    text = ", ".join(bundle.beside)
    return textwrap.wrap(text, width=80, initial_indent="beside      ", subsequent_indent=" " * 12)


def program_lines(manifest: Manifest) -> list[str]:
    """Return a table of what each program costs and holds."""
    from guard.offline.work.tables import new_table, plain_lines, shares

    table = new_table("program", map(shares, ("forwards at least", "detectors")))
    for program in manifest.programs:
        other = f"\n+ {program.forwards:.2g} of other networks" if program.forwards else ""
        cost = f"{program.floor:.3g} (1 + {program.backwards} backward + {program.rows} rows{other})"
        table.add_row(program.name, cost, "\n".join(program.detectors))
    return plain_lines([table])


def served_lines(manifest: Manifest) -> list[str]:
    """Lines on how far the served model is from the guard's copy; none where they are one."""
    found = manifest.provenance.get("served")
    if not found:
        return []
    text = f"{found['form']}; {manifest.measured_disagreement:.2%} of the predictions differ from its float32 copy's"
    return textwrap.wrap(text, width=80, initial_indent="served      ", subsequent_indent=" " * 12)


def student_lines(manifest: Manifest, *, holds_answers: bool) -> list[str]:
    """Lines on the student of a model that cannot be opened, and whose gradient is read; none of an opened model."""
    found = manifest.provenance.get("student")
    if not found:
        return []
    held = "; its answers can be held until the verdict (forward = 'before')" if holds_answers else ""
    transfer = "" if found["transfer"] is None else f"; {found['transfer']:.0%} of what misleads it fools the model"
    text = (
        f"{found['model']} answers ({found['by']}), the gradient is a student's, distilled from {found['questions']:,} "
        f"answers; both name the same class on {found['agreed']:.1%} of {found['items']:,} clean items{transfer}"
        f"{held}"
    )
    return textwrap.wrap(text, width=80, initial_indent="closed      ", subsequent_indent=" " * 12)


def second_lines(manifest: Manifest) -> list[str]:
    """Lines on each second network that the detectors ask: where it comes from, how good it is, what it costs."""
    found = [str(text) for text in manifest.provenance.get("second", ())]
    return [
        line
        for text in found
        for line in textwrap.wrap(text, width=80, initial_indent="second      ", subsequent_indent=" " * 12)
    ]


def fusion_lines(manifest: Manifest) -> list[str]:
    """Lines on the share of the rate for evidence that needs no attacks; none where the manifest does not say."""
    found = manifest.provenance.get("fusion")
    if not found:
        return []
    text = f"{found['alone_rate_share']:.0%} of the rate is kept for evidence that needs no attacks"
    if found["left_out"]:
        family, share = min(found["left_out"].items(), key=lambda one: float(one[1]))
        text += f"; of the family that is caught least where it is left out, {family}, {share:.0%} is"
    return textwrap.wrap(text, width=80, initial_indent="fusion      ", subsequent_indent=" " * 12)


def choice_lines(manifest: Manifest) -> list[str]:
    """Lines on how detectors were chosen within a limit of forwards; none where the recipe's were all taken."""
    found = manifest.provenance.get("choice")
    if not found:
        return []
    return textwrap.wrap(choice_text(found), width=80, initial_indent="chosen      ", subsequent_indent=" " * 12)


def cut_lines(manifest: Manifest) -> list[str]:
    """Lines on what was cut of the guard and of its report, against what recipe and options ask for."""
    return [
        line
        for what, texts in manifest.provenance.get("cuts", {}).items()
        for text in texts
        for line in textwrap.wrap(
            f"{text} ({what})", width=80, initial_indent="cut         ", subsequent_indent=" " * 12
        )
    ]


def source_lines(manifest: Manifest) -> list[str]:
    """Lines on what the bundle was made from: each file or data set with the beginning of its SHA-256."""
    lines = []
    for name, found in manifest.provenance.get("sources", {}).items():
        parts = [f"{found['items']:,} items"] if "items" in found else []
        parts += [f"sha256 {found['digest'][7:23]}"] if "digest" in found else []
        parts += [f"its file {found['file'][7:23]}"] if "file" in found else []
        lines += textwrap.wrap(
            f"{name}: {', '.join(parts)}", width=80, initial_indent="made from   ", subsequent_indent=" " * 12
        )
    return lines


def parent_lines(manifest: Manifest) -> list[str]:
    """Lines on the bundle that this one was calibrated from; none where it was trained."""
    found = manifest.provenance.get("calibrated")
    if not found:
        return []
    text = f"{found['parent'][:16]}, its thresholds set anew on {found['items']:,} items of traffic"
    return textwrap.wrap(text, width=80, initial_indent="parent      ", subsequent_indent=" " * 12)


def made_lines(manifest: Manifest) -> list[str]:
    """Lines on the versions of what made the bundle."""
    text = ", ".join(f"{name} {version}" for name, version in manifest.made_by.items())
    return textwrap.wrap(text, width=80, initial_indent="made by     ", subsequent_indent=" " * 12)


def own_ranges(spec: InputSpec) -> list[str]:
    """A line that says so where channels or features have ranges of their own; none where all share one range."""
    several = len(set(zip(spec.low, spec.high, strict=True))) > 1
    return [f"{'':<12}each {spec.axes.part} has a range of its own"] if several else []


def feature_lines(spec: InputSpec) -> list[str]:
    """Lines on a table's features, in the order of the wire; none where they are nothing but names of numbers."""
    if only_names(spec.features):
        return []
    return [
        line
        for feature in spec.features
        for line in textwrap.wrap(
            feature_text(feature), width=80, initial_indent="feature     ", subsequent_indent=" " * 12
        )
    ]


def classes_in_order(output: OutputSpec) -> list[str]:
    """Lines that name the classes by number; of labels that are numbers, which numbers there are."""
    named = "  ".join(f"{number} {name}" for number, name in enumerate(output.labels))
    text = named or f"numbers 0 to {output.classes - 1}, as the labels of the data stand"
    return textwrap.wrap(text, width=80, initial_indent="classes     ", subsequent_indent=" " * 12)


def wrap(text: str) -> list[str]:
    return textwrap.wrap(text, width=80, subsequent_indent="      ")
