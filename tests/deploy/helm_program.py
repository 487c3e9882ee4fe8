"""Lints and renders charts in the side environment `helm`, which has Helm's own library and nothing of ours.

From standard input a JSON object: the chart's folder, and by name what is asked: values (YAML), and `lint` where they
are to be linted. To standard output one by the same names: the rendered objects, the notes, and the error if any.
"""

import json
import sys

import helm_python as helm
import yaml

RELEASE, NAMESPACE = "digits", "models"


def rendered(chart, values):
    with helm.Chart.load(chart) as loaded:
        files = loaded.render(values, name=RELEASE, namespace=NAMESPACE)
    notes = "".join(text for name, text in files.items() if name.endswith("NOTES.txt"))
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    objects = [one for text in texts for one in yaml.safe_load_all(text) if one is not None]
    return {"objects": objects, "notes": notes}


def linted(chart, values):
    report = helm.lint(chart, values, strict=True)
    return {"errors": report["errors"], "messages": [one["error"] for one in report["messages"]]}


def answer(chart, asked):
    try:
        values = helm.values_from_yaml(asked["values"])
        if "lint" in asked:
            return linted(chart, values)
        return rendered(chart, values)
    except helm.HelmError as error:
        return {"error": str(error)}


asked = json.load(sys.stdin)
json.dump({name: answer(asked["chart"], one) for name, one in asked["asked"].items()}, sys.stdout)
