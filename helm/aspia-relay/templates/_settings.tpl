{{/* The relay's settings: relay.json and the variables. */}}

{{/* The port that the relay listens on. */}}
{{- define "aspia-relay.listenPort" -}}
{{- default .Values.peer.port .Values.peer.listenPort | int -}}
{{- end -}}

{{/* "true" if the init container has to query the API server for the Node. */}}
{{- define "aspia-relay.asksForNode" -}}
{{- if has .Values.peerAddress.from (list "nodeExternalIP" "nodeAnnotation" "nodeLabel") -}}true{{- end -}}
{{- end -}}

{{/* All settings except secrets. */}}
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
{{- /* On the host network the kubelet reaches 127.0.0.1, because it runs on the same host; nobody outside can. In the pod
       network it connects from outside the pod, to the pod's address. */ -}}
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

{{/* What needs a new pod when it changes: with watchConfig, the settings that a relay reads only when it starts; otherwise all of
     them. The rest of the pod rolls out by itself when it changes. */}}
{{- define "aspia-relay.settingsOfPod" -}}
{{- $settings := include "aspia-relay.relayJson" . -}}
{{- if .Values.watchConfig -}}
{{- $ofPod := pick (fromJson $settings) "ListenInterface" "AdminListen" "MetricsListen" "WorkerThreads" -}}
{{- /* "" and 0 are what the relay does without the setting. */ -}}
{{- range $key, $value := $ofPod -}}
{{- if not $value }}{{ $_ := unset $ofPod $key }}{{ end -}}
{{- end -}}
{{- set $ofPod "ListenPort" (include "aspia-relay.listenPort" .) | toJson -}}
{{- else -}}
{{- printf "%s%s" $settings (include "aspia-relay.ownSecret" .) -}}
{{- end -}}
{{- end -}}

{{/* The variables of the relay. */}}
{{- define "aspia-relay.env" -}}
{{ include "aspia-relay.terminationMessage" . }}
- name: ASPIA_RELAY_WATCH_CONFIG
  value: {{ .Values.watchConfig | quote }}
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
{{- if include "aspia-relay.hasFdStore" . }}
{{ include "aspia-relay.fdStoreAddress" . }}
{{- end }}
# Before the variables that use it: Kubernetes expands only variables that are defined above.
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- if not (hasKey (default dict .Values.config) "DisplayName") }}
# In the pod network the host name is that of the pod, which does not say where it runs.
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

{{/* An interval such as 15s or 1m, in seconds. */}}
{{- define "aspia-relay.seconds" -}}
{{- mul (regexFind "^[0-9]+" . | int) (ternary 60 1 (hasSuffix "m" .)) -}}
{{- end -}}

{{/* A quantity of memory such as 256Mi, 1.5G or 268435456, in bytes; empty if it is not a quantity. */}}
{{- define "aspia-relay.bytes" -}}
{{- $quantity := toString . -}}
{{- $number := regexFind `^[0-9.]+([eE][+-]?[0-9]+)?` $quantity -}}
{{- $units := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $unit := trimPrefix $number $quantity -}}
{{- if and $number (hasKey $units $unit) -}}
{{- mulf (float64 $number) (get $units $unit) | int64 -}}
{{- end -}}
{{- end -}}

{{/* The most memory that the program uses, in KiB, as the documentation states it. */}}
{{- define "aspia-relay.memoryKiB" -}}
{{- $config := default dict .Values.config -}}
{{- $sessions := get $config "MaxPeerCount" | default 100 | int64 -}}
{{- $pending := get $config "MaxPendingPeers" | default 1024 | int64 -}}
{{- add 32768 (mul 160 $sessions) (mul 24 $pending) -}}
{{- end -}}
