# Reads {"chart": DIR, "values": [YAML or JSON text, ...]} from standard input, renders the chart with Helm for each, and
# writes [{"templates": {...}} or {"error": "..."}, ...] and the findings of lint.
import json
import sys

import helm_python as helm

request = json.load(sys.stdin)
answers = []
with helm.Chart.load(request["chart"]) as chart:
    defaults = chart.values
    for text in request["values"]:
        try:
            values = helm.values_from_yaml(text)
            templates = chart.render(values, name="netpol", namespace="kube-system")
            answers.append({"templates": templates})
        except helm.HelmError as error:
            answers.append({"error": str(error)})
lint = helm.lint(request["chart"], strict=True)
findings = [f"{m['path']}: {m['error']}" for m in lint["messages"] if m["severity"] > 1] + lint["errors"]
json.dump({"answers": answers, "lint": findings, "defaults": defaults}, sys.stdout)
