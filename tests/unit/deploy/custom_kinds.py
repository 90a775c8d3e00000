"""Schemas of the custom resources that the chart makes: the fields that it uses, and no others.

Kubernetes' own schemas do not have them. They were compared with the definitions of the Prometheus Operator, the
External Secrets Operator, the Gateway API, its inference extension, and Envoy Gateway.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
DURATION: Schema = {"type": "string", "pattern": r"^(0|(([0-9]+)y)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?)$"}


def record(*optional: str, **fields: Schema) -> Schema:
    """Return the schema of an object with these fields; those named in `optional` may be missing."""
    required = [name for name in fields if name not in optional]
    return {"type": "object", "additionalProperties": False, "properties": fields, "required": required}


def several(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


SELECTOR = record(matchLabels=LABELS)
SCRAPED = several(record(port=TEXT, path=TEXT, interval=DURATION))
RULE = record(
    *("alert", "record", "for", "keep_firing_for", "labels", "annotations"),
    **{"alert": TEXT, "record": TEXT, "expr": TEXT, "for": DURATION, "keep_firing_for": DURATION},
    labels=LABELS,
    annotations=LABELS,
)

SPECS: dict[tuple[str, str], Schema] = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): record(selector=SELECTOR, endpoints=SCRAPED),
    ("monitoring.coreos.com/v1", "PodMonitor"): record(selector=SELECTOR, podMetricsEndpoints=SCRAPED),
    ("monitoring.coreos.com/v1", "PrometheusRule"): record(
        groups=several(record("interval", name=TEXT, interval=DURATION, rules=several(RULE)))
    ),
    ("external-secrets.io/v1", "ExternalSecret"): record(
        refreshInterval=DURATION,
        secretStoreRef=record(kind={"enum": ["SecretStore", "ClusterSecretStore"]}, name=TEXT),
        target=record(name=TEXT),
        data=several(record(secretKey=TEXT, remoteRef=record(key=TEXT, property=TEXT))),
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): record(
        "hostnames",
        parentRefs=several(record("namespace", name=TEXT, namespace=TEXT)),
        hostnames=several(TEXT),
        rules=several(
            record(
                matches=several(record(path=record(type={"enum": ["PathPrefix"]}, value={"pattern": "^/"}))),
                timeouts=record(request=DURATION),
                backendRefs=several(record("group", "kind", "port", group=TEXT, kind=TEXT, name=TEXT, port=PORT)),
            )
        ),
    ),
    ("gateway.networking.k8s.io/v1", "Gateway"): record(
        gatewayClassName=TEXT,
        listeners=several(
            record(
                name=TEXT,
                port=PORT,
                protocol={"enum": ["HTTP", "HTTPS"]},
                tls=record(certificateRefs=several(record(name=TEXT))),
                allowedRoutes=record(namespaces=record(**{"from": {"enum": ["Selector"]}, "selector": SELECTOR})),
            )
        ),
    ),
    ("gateway.envoyproxy.io/v1alpha1", "ClientTrafficPolicy"): record(
        targetRefs=several(record(group=TEXT, kind=TEXT, name=TEXT)),
        headers=record(earlyRequestHeaders=record(remove=several(TEXT))),
    ),
    ("inference.networking.k8s.io/v1", "InferencePool"): record(
        selector=SELECTOR,
        targetPorts=several(record(number=PORT)),
        endpointPickerRef=record(
            "failureMode", name=TEXT, port=record(number=PORT), failureMode={"enum": ["FailOpen", "FailClose"]}
        ),
    ),
}
"""(apiVersion, kind) -> schema of its spec."""
