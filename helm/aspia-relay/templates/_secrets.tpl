{{/* Where secrets come from: Secrets of the user, or the one that the chart creates from values. */}}

{{/* Name and key of the Secret with a token, as JSON; null if there is none.
     Called with root, token (the values) and key (in the chart's own Secret). */}}
{{- define "aspia-relay.tokenSecret" -}}
{{- if .token.existingSecret.name -}}
{{- toJson .token.existingSecret -}}
{{- else if .token.value -}}
{{- toJson (dict "name" (include "aspia-relay.fullname" .root) "key" .key) -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{- define "aspia-relay.adminTokenSecret" -}}
{{- include "aspia-relay.tokenSecret" (dict "root" . "token" .Values.adminToken "key" "admin-token") -}}
{{- end -}}

{{- define "aspia-relay.metricsTokenSecret" -}}
{{- include "aspia-relay.tokenSecret" (dict "root" . "token" .Values.metricsToken "key" "metrics-token") -}}
{{- end -}}

{{/* The content of the chart's own Secret. */}}
{{- define "aspia-relay.ownSecret" -}}
{{- with .Values.adminToken.value }}
admin-token: {{ . | quote }}
{{- end }}
{{- with .Values.metricsToken.value }}
metrics-token: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "aspia-relay.adminTokenSource" -}}
{{- with include "aspia-relay.adminTokenSecret" . | fromJson }}
- secret:
    name: {{ .name | quote }}
    items:
      - key: {{ .key | quote }}
        path: admin-token
{{- end }}
{{- end -}}

{{/* The sources of the volume with secrets. */}}
{{- define "aspia-relay.secretSources" -}}
{{- include "aspia-relay.adminTokenSource" . }}
{{- with include "aspia-relay.metricsTokenSecret" . | fromJson }}
- secret:
    name: {{ .name | quote }}
    items:
      - key: {{ .key | quote }}
        path: metrics-token
{{- end }}
{{- with .Values.router.publicKey.existingSecret }}
{{- if .name }}
- secret:
    name: {{ .name | quote }}
    items:
      - key: {{ .key | quote }}
        path: router.pub
{{- end }}
{{- end }}
{{- with .Values.router.publicKey.existingConfigMap }}
{{- if .name }}
- configMap:
    name: {{ .name | quote }}
    items:
      - key: {{ .key | quote }}
        path: router.pub
{{- end }}
{{- end }}
{{- with .Values.metrics.tls.existingSecret }}
- secret:
    name: {{ . | quote }}
    items:
      - key: tls.crt
        path: tls/tls.crt
      - key: tls.key
        path: tls/tls.key
{{- end }}
{{- with .Values.metrics.tls.clientCa }}
{{- if .existingSecret }}
- secret:
    name: {{ .existingSecret | quote }}
    items:
      - key: {{ .key | quote }}
        path: tls/client-ca.crt
{{- end }}
{{- end }}
{{- end -}}
