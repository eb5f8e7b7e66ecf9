{{/* The relay's settings: relay.json and the variables. */}}

{{/* The port that the relay listens on. */}}
{{- define "aspia-relay.listenPort" -}}
{{- default .Values.peer.port .Values.peer.listenPort | int -}}
{{- end -}}

{{/* "true" where the init container has to ask the API server for the Node. */}}
{{- define "aspia-relay.asksForNode" -}}
{{- if has .Values.peerAddress.from (list "nodeExternalIP" "nodeAnnotation" "nodeLabel") -}}true{{- end -}}
{{- end -}}

{{/* Everything but secrets. */}}
{{- define "aspia-relay.relayJson" -}}
{{- $settings := default dict .Values.config | deepCopy -}}
{{- $_ := set $settings "RouterAddress" .Values.router.address -}}
{{- $_ := set $settings "RouterPort" (int .Values.router.port) -}}
{{- with .Values.router.publicKey.value -}}
{{- $_ := set $settings "RouterPublicKey" (trim .) -}}
{{- end -}}
{{- if eq .Values.peerAddress.from "value" -}}
{{- $_ := set $settings "PeerAddress" .Values.peerAddress.value -}}
{{- end -}}
{{- $_ := set $settings "PeerPort" (int .Values.peer.port) -}}
{{- if ne (include "aspia-relay.listenPort" .) (toString (int .Values.peer.port)) -}}
{{- $_ := set $settings "ListenPort" (int .Values.peer.listenPort) -}}
{{- end -}}
{{- $_ := set $settings "DrainTimeout" (printf "%ds" (int .Values.drainTimeoutSeconds)) -}}
{{- /* On the host network the kubelet reaches 127.0.0.1, as it is on the same host; nobody outside does. In the pod
       network it comes from outside of the pod, to the pod's address. */ -}}
{{- $adminAddress := ternary "127.0.0.1" "" .Values.hostNetwork -}}
{{- $_ := set $settings "AdminListen" (printf "%s:%d" $adminAddress (int .Values.admin.port)) -}}
{{- if .Values.metrics.enabled -}}
{{- $_ := set $settings "MetricsListen" (printf ":%d" (int .Values.metrics.port)) -}}
{{- end -}}
{{- if .Values.metrics.tls.existingSecret -}}
{{- /* Paths, so that renewed files are read again. */ -}}
{{- $_ := set $settings "MetricsTlsCertificate" "/run/secrets/aspia-relay/tls/tls.crt" -}}
{{- $_ := set $settings "MetricsTlsPrivateKey" "/run/secrets/aspia-relay/tls/tls.key" -}}
{{- end -}}
{{- if .Values.metrics.tls.clientCa.existingSecret -}}
{{- $_ := set $settings "MetricsTlsClientCa" "/run/secrets/aspia-relay/tls/client-ca.crt" -}}
{{- end -}}
{{- toPrettyJson $settings -}}
{{- end -}}

{{/* The variables of the relay. */}}
{{- define "aspia-relay.env" -}}
{{ include "aspia-relay.terminationMessage" . }}
- name: ASPIA_RELAY_ADMIN_TOKEN_FILE
  value: /run/secrets/aspia-relay/admin-token
{{- if include "aspia-relay.metricsTokenSecret" . | fromJson }}
- name: ASPIA_RELAY_METRICS_TOKEN_FILE
  value: /run/secrets/aspia-relay/metrics-token
{{- end }}
{{- if not .Values.router.publicKey.value }}
- name: ASPIA_RELAY_ROUTER_PUBLIC_KEY_FILE
  value: /run/secrets/aspia-relay/router.pub
{{- end }}
# Before the variables that name it: Kubernetes expands only what stands above.
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- if not (hasKey (default dict .Values.config) "DisplayName") }}
# In the pod network the host name is the pod's, which does not say where it runs.
- name: ASPIA_RELAY_DISPLAY_NAME
  value: $(NODE_NAME)
{{- end }}
{{- if eq .Values.peerAddress.from "hostIP" }}
- name: ASPIA_RELAY_PEER_ADDRESS
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- else if eq .Values.peerAddress.from "template" }}
- name: ASPIA_RELAY_PEER_ADDRESS
  value: {{ .Values.peerAddress.template | replace "{{node}}" "$(NODE_NAME)" | quote }}
{{- else if include "aspia-relay.asksForNode" . }}
- name: ASPIA_RELAY_PEER_ADDRESS_FILE
  value: /run/aspia-relay/peer-address
{{- end }}
{{- if .Values.tracing.endpoint }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .Values.tracing.endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ .Values.tracing.protocol | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.node.name=$(NODE_NAME),k8s.pod.name=$(POD_NAME),k8s.namespace.name=$(POD_NAMESPACE)
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Seconds of an interval such as 15s or 1m. */}}
{{- define "aspia-relay.seconds" -}}
{{- mul (regexFind "^[0-9]+" . | int) (ternary 60 1 (hasSuffix "m" .)) -}}
{{- end -}}

{{/* Bytes of a quantity of memory such as 256Mi, 1.5G or 268435456; nothing where it is none. */}}
{{- define "aspia-relay.bytes" -}}
{{- $quantity := toString . -}}
{{- $number := regexFind `^[0-9.]+([eE][+-]?[0-9]+)?` $quantity -}}
{{- $units := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $unit := trimPrefix $number $quantity -}}
{{- if and $number (hasKey $units $unit) -}}
{{- mulf (float64 $number) (get $units $unit) | int64 -}}
{{- end -}}
{{- end -}}

{{/* What the program takes at most, as the README says, in KiB. */}}
{{- define "aspia-relay.memoryKiB" -}}
{{- $config := default dict .Values.config -}}
{{- $sessions := get $config "MaxPeerCount" | default 100 | int64 -}}
{{- $pending := get $config "MaxPendingPeers" | default 1024 | int64 -}}
{{- add 32768 (mul 160 $sessions) (mul 24 $pending) -}}
{{- end -}}
