{{/* One endpoint of a PodMonitor or ServiceMonitor. Called with root and monitor (the values). */}}
{{- define "aspia-relay.scrapeEndpoint" -}}
{{- $root := .root -}}
port: metrics
path: /metrics
interval: {{ .monitor.interval }}
relabelings:
  # The rules and the dashboard choose jobs by names that begin so.
  - targetLabel: job
    replacement: aspia-relay
  # An address tells little.
  - sourceLabels: [__meta_kubernetes_pod_node_name]
    targetLabel: node
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
