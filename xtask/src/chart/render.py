"""Renders and validates charts for `cargo xtask chart`: a request as JSON on stdin, an answer as JSON on stdout.

Here is only what has no other way in: Helm's own library and the schemas are Python packages. What is made of the
answer is decided in Rust.
"""

import json
import sys

import helm_python
import kubernetes_validate
import yaml


class Strict(yaml.SafeLoader):
    """YAML as an API server takes it: a key that is written twice is refused."""


def mapping(loader, node):
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = {str(key) for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.constructor.ConstructorError(None, None, f"written twice: {sorted(twice)}", node.start_mark)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)


def number(version):
    return [int(part) for part in version.split(".")[:2]]


def between(first, before):
    known = dict.fromkeys(kubernetes_validate.utils.all_versions())
    return [v for v in known if number(first) <= number(v) and (before is None or number(v) < number(before))]


def fault(document, version):
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        return {"version": version, "at": "", "what": error.message, "no_schema": True}
    except kubernetes_validate.ValidationError as error:
        return {"version": version, "at": ".".join(str(step) for step in error.path), "what": error.message, "no_schema": False}
    return None


def answer(case):
    values = {}
    if case["values"] is not None:
        with open(case["values"]) as file:
            values = yaml.load(file, Loader=Strict) or {}
    linted = helm_python.lint(case["chart"], values=values, strict=True, namespace=case["namespace"])
    said = {
        "lint": [message for message in linted["messages"] if message["severity"] > 1],
        "error": None,
        "manifests": {},
        "documents": [],
        "versions": between(case["first"], case["before"]),
    }
    try:
        said["manifests"] = helm_python.Chart.load(case["chart"]).render(values, name=case["release"], namespace=case["namespace"])
    except helm_python.HelmError as error:
        said["error"] = str(error)
        return said
    for template, text in sorted(said["manifests"].items()):
        if not template.endswith(".yaml"):
            continue
        try:
            documents = [document for document in yaml.load_all(text, Loader=Strict) if document is not None]
        except yaml.YAMLError as error:
            said["error"] = f"{template}: {error}"
            return said
        for document in documents:
            faults = [found for found in (fault(document, version) for version in said["versions"]) if found]
            said["documents"].append({"template": template, "object": document, "faults": faults})
    return said


json.dump([answer(case) for case in json.load(sys.stdin)], sys.stdout)
