{{/* Names and labels. */}}

{{- define "aspia-relay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* 52 characters leave room for the suffixes, including that of a StatefulSet's label controller-revision-hash. */}}
{{- define "aspia-relay.fullname" -}}
{{- $name := include "aspia-relay.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "aspia-relay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "aspia-relay.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The labels of all pods of a release, including that of the test. */}}
{{- define "aspia-relay.instanceLabels" -}}
app.kubernetes.io/name: {{ include "aspia-relay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The labels of relays alone. They cannot be changed in an upgrade. */}}
{{- define "aspia-relay.selectorLabels" -}}
{{ include "aspia-relay.instanceLabels" . }}
app.kubernetes.io/component: relay
{{- end -}}

{{- define "aspia-relay.labels" -}}
{{ include "aspia-relay.selectorLabels" . }}
{{ include "aspia-relay.chartLabels" . }}
{{- end -}}

{{- define "aspia-relay.chartLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "aspia-relay.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}
