"""The alert rules: well-formed, about metrics that exist, and with a test for each in promtool's own format."""

import re
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
RULE_KEYS = {"alert", "expr", "for", "labels", "annotations"}
DURATION = re.compile(r"\d+[smh]")
LABELS = {
    "up": {"job"},
    "nv_inference_pending_request_count": {"model", "version"},
    "nv_inference_exec_count": {"model", "version"},
    "nv_inference_request_failure": {"model", "version", "reason"},
    "nv_cpu_memory_used_bytes": set(),
    "nv_cpu_memory_total_bytes": set(),
    "lab_open_streams": {"model", "version", "instance"},
}
"""Metrics that the rules may name, with the labels that a server gives them; tests/server looks at a live one."""
TARGET = {"job", "instance"}  # Prometheus adds them to every metric


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def rules() -> list[dict]:
    return [rule for group in load("triton_ensemble_rules.yml")["groups"] for rule in group["rules"]]


def readme_rules() -> list[dict]:
    block = re.search(r"```yaml\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"), flags=re.S)
    return yaml.safe_load(block[1])


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Metric names, each with the labels that its braces name."""
    found = re.findall(r"\b((?:nv|lab)_\w+|up)\b(?:\{([^}]*)\})?", expression)
    return [(name, set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', inside))) for name, inside in found]


@pytest.mark.parametrize("rule", rules() + readme_rules(), ids=lambda rule: rule["alert"])
def test_a_rule_has_the_keys_of_the_format_and_nothing_else(rule):
    assert rule.keys() <= RULE_KEYS
    assert RULE_KEYS - {"for"} <= rule.keys()
    assert re.fullmatch(r"[A-Z][A-Za-z]+", rule["alert"])
    assert DURATION.fullmatch(rule.get("for", "1m"))
    assert rule["labels"]["severity"] in ("page", "warn")
    assert rule["annotations"].keys() == {"summary", "todo"}


@pytest.mark.parametrize("rule", rules() + readme_rules(), ids=lambda rule: rule["alert"])
def test_brackets_are_closed_and_templates_name_labels_that_the_expression_keeps(rule):
    for opening, closing in ("()", "[]", "{}"):
        assert rule["expr"].count(opening) == rule["expr"].count(closing)
    kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"])))) or TARGET
    assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= kept | TARGET


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_the_rules_name_only_metrics_and_labels_of_the_server(rule):
    named = selectors(rule["expr"])
    assert named
    for metric, labels in named:
        assert labels <= LABELS[metric] | TARGET, f"{metric} has no label {labels - LABELS[metric]}"


def test_the_metrics_of_the_readme_are_those_that_nobody_exports_yet():
    assert {metric for rule in readme_rules() for metric, _ in selectors(rule["expr"])} == {
        "lab_message_ids_total",
        "lab_messages_total",
    }


def test_every_alert_has_a_case_that_fires_and_one_that_does_not():
    tested = load("triton_ensemble_rules_test.yml")
    cases = [case for test in tested["tests"] for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    assert fires == silent == {rule["alert"] for rule in rules()}
    assert tested["rule_files"] == ["triton_ensemble_rules.yml"]


def test_the_configuration_reads_the_rules_and_scrapes_the_job_that_they_name():
    config = load("prometheus.yml")
    assert config["rule_files"] == ["triton_ensemble_rules.yml"]
    (job,) = config["scrape_configs"]
    named = {name for rule in rules() for name in re.findall(r'job="(\w+)"', rule["expr"])}
    assert named == {job["job_name"]} == {"triton"}
