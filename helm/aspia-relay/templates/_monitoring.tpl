{{/* One endpoint of a PodMonitor or ServiceMonitor. Called with root and monitor (the values). */}}
{{- define "aspia-relay.scrapeEndpoint" -}}
{{- $root := .root -}}
port: metrics
path: /metrics
interval: {{ .monitor.interval }}
relabelings:
  # The rules and the dashboard select jobs whose names begin with this.
  - targetLabel: job
    replacement: aspia-relay
  # The name of the node says more than an address.
  - sourceLabels: [__meta_kubernetes_pod_node_name]
    targetLabel: node
  {{- if include "aspia-relay.hasFdStore" $root }}
  # A relay goes on with the counters of its predecessor, whose pod has another name. With the name as a label, the series would
  # end and begin with each pod, and increase() would miss what happened between them, such as the hand-over itself.
  - action: labeldrop
    regex: pod
  {{- end }}
{{- with include "aspia-relay.metricsTokenSecret" $root | fromJson }}
authorization:
  credentials:
    name: {{ .name | quote }}
    key: {{ .key | quote }}
{{- end }}
{{- with $root.Values.metrics.tls }}
{{- if .existingSecret }}
scheme: https
tlsConfig:
  serverName: {{ .serverName | quote }}
  {{- if .ca.existingSecret }}
  ca:
    secret:
      name: {{ .ca.existingSecret | quote }}
      key: {{ .ca.key | quote }}
  {{- end }}
  {{- if .scraperSecret }}
  cert:
    secret:
      name: {{ .scraperSecret | quote }}
      key: tls.crt
  keySecret:
    name: {{ .scraperSecret | quote }}
    key: tls.key
  {{- end }}
{{- else }}
scheme: http
{{- end }}
{{- end }}
{{- end -}}
