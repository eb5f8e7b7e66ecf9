{{/* The problems of the values, one line each. */}}
{{- define "aspia-relay.problems" -}}
{{- $v := .Values -}}
{{- $p := list -}}
{{- $config := default dict $v.config -}}

{{- /* Strings that must match a pattern: name, value, pattern, what is expected. Empty means not set; secrets are never shown. */ -}}
{{- $host := `^([A-Za-z0-9_.-]+|[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*:[0-9A-Fa-f.:]*)$` -}}
{{- $hostName := "a host name or an IP address, without a port and without brackets" -}}
{{- /* IPv6 is checked only roughly; the relay itself is stricter. */ -}}
{{- $ip4 := `(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}` -}}
{{- $ip := printf `^(%s|[0-9A-Fa-f]{0,4}(:[0-9A-Fa-f]{0,4}){2,7}|[0-9A-Fa-f]{0,4}(:[0-9A-Fa-f]{0,4}){1,6}:%s)$` $ip4 $ip4 -}}
{{- $duration := "a duration with a unit, such as 30s, 5m or 1h30m" -}}
{{- $forms := list
  (list "router.address" $v.router.address $host $hostName)
  (list "router.publicKey.value" $v.router.publicKey.value `^\s*[0-9A-Fa-f]{64}\s*$` "64 hex digits, the content of router.pub on the Router's machine")
  (list "peerAddress.value" $v.peerAddress.value $host $hostName)
  (list "peerAddress.template" $v.peerAddress.template `^[A-Za-z0-9_.-]*\{\{node\}\}[A-Za-z0-9_.-]*$` "a host name that contains {{node}} once, such as {{node}}.relay.example.com")
  (list "peerAddress.key" $v.peerAddress.key `^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$` "the key of an annotation or a label, such as example.com/relay-address")
  (list "config.ListenInterface" (get $config "ListenInterface") $ip "an IP address of the node, without a port and without brackets, or empty for all addresses")
  (list "config.MaxSessionDuration" (get $config "MaxSessionDuration") `^([0-9]+(ms|s|m|h|d))+$` $duration)
  (list "fdStore.timeout" $v.fdStore.timeout `^([0-9]+(ms|s|m|h|d))+$` $duration)
  (list "tracing.endpoint" $v.tracing.endpoint `^https?://([^/:@]+|\[[0-9A-Fa-f:]+\]):[0-9]+(/.*)?$` "a URL with a port, such as http://collector.observability:4318")
  (list "service.nodePortRange" $v.service.nodePortRange `^[0-9]{1,5}-[0-9]{1,5}$` "the first and the last port, such as 30000-32767")
  (list "podMonitor.interval" $v.podMonitor.interval `^[1-9][0-9]{0,4}[sm]$` "seconds or minutes, such as 15s or 1m")
  (list "serviceMonitor.interval" $v.serviceMonitor.interval `^[1-9][0-9]{0,4}[sm]$` "seconds or minutes, such as 15s or 1m") -}}
{{- range $form := $forms -}}
{{- $name := index $form 0 -}}
{{- $value := index $form 1 -}}
{{- if and $value (not (regexMatch (index $form 2) $value)) -}}
{{- $p = append $p (printf "%s is %q: expected %s" $name $value (index $form 3)) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "adminToken" "metricsToken" -}}
{{- $value := (get $v $name).value -}}
{{- if and $value (not (regexMatch `^[!-~]{16,}$` $value)) -}}
{{- $p = append $p (printf "%s.value is not shown: expected at least 16 printable ASCII characters without spaces; openssl rand -hex 32 makes a good one" $name) -}}
{{- end -}}
{{- end -}}

{{- /* Router */ -}}
{{- if not $v.router.address -}}
{{- $p = append $p "router.address is empty: expected the host name or address of the Router" -}}
{{- end -}}
{{- $key := $v.router.publicKey -}}
{{- $given := list -}}
{{- range $name, $value := dict "router.publicKey.value" $key.value "router.publicKey.existingConfigMap.name" $key.existingConfigMap.name "router.publicKey.existingSecret.name" $key.existingSecret.name -}}
{{- if $value }}{{ $given = append $given $name }}{{ end -}}
{{- end -}}
{{- if not $given -}}
{{- $p = append $p "router.publicKey is not set: set router.publicKey.value to the content of router.pub on the Router's machine, or name a ConfigMap or Secret that holds it (router.publicKey.existingConfigMap.name, router.publicKey.existingSecret.name)" -}}
{{- else if gt (len $given) 1 -}}
{{- $p = append $p (printf "%s are set: set only one of them, because the Router has one key" (join " and " (sortAlpha $given))) -}}
{{- end -}}

{{- /* PeerAddress */ -}}
{{- $from := $v.peerAddress.from -}}
{{- if not $from -}}
{{- $p = append $p "peerAddress.from is empty: set it to where the address that peers dial comes from: hostIP, template, nodeExternalIP, nodeAnnotation, nodeLabel or value (the README of the chart says which suits)" -}}
{{- end -}}
{{- $needs := dict "template" "template" "value" "value" "nodeAnnotation" "key" "nodeLabel" "key" -}}
{{- $needed := get $needs $from -}}
{{- range $name := list "template" "value" "key" -}}
{{- $value := get $v.peerAddress $name -}}
{{- if and (eq $name $needed) (not $value) -}}
{{- $p = append $p (printf "peerAddress.%s is empty: peerAddress.from %q needs it" $name $from) -}}
{{- else if and $from $value (ne $name $needed) -}}
{{- $p = append $p (printf "peerAddress.%s %q has no effect with peerAddress.from %q: remove it or change peerAddress.from" $name $value $from) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $from "value") (eq $v.kind "DaemonSet") -}}
{{- $p = append $p "peerAddress.from \"value\" gives all relays of a DaemonSet one address, but a peer must reach the very relay that issued its key: use kind StatefulSet for one relay, or another peerAddress.from" -}}
{{- end -}}
{{- if and (include "aspia-relay.asksForNode" .) (not $v.rbac.create) (or $v.serviceAccount.create (not $v.serviceAccount.name)) -}}
{{- $p = append $p (printf "peerAddress.from %q needs permission to read Nodes: set rbac.create to true (the README of the chart says what that allows), or set serviceAccount.create to false and serviceAccount.name to a service account that has it" $from) -}}
{{- end -}}
{{- if and $from $v.rbac.create (not (include "aspia-relay.asksForNode" .)) -}}
{{- $p = append $p (printf "rbac.create grants a permission that peerAddress.from %q does not use: remove it" $from) -}}
{{- end -}}
{{- if and $v.rbac.create (not $v.serviceAccount.create) (not $v.serviceAccount.name) -}}
{{- $p = append $p "rbac.create would allow the service account \"default\", and so other pods, to read Nodes: set serviceAccount.name, or set serviceAccount.create to true" -}}
{{- end -}}

{{- /* Workload. The schema accepts Deployment, so that the message here can name its successor. */ -}}
{{- if eq $v.kind "Deployment" -}}
{{- $p = append $p "kind \"Deployment\" no longer exists: use kind StatefulSet for one relay. A Deployment starts the next pod while the old one still drains, and two relays behind one address break each other's sessions. An upgrade replaces a Deployment of an earlier version of this chart: its relay drains, and new peers reach the relay of the StatefulSet" -}}
{{- end -}}

{{- if ne (toString $v.updateStrategy.maxUnavailable) "1" -}}
{{- if eq $v.updateStrategy.type "OnDelete" -}}
{{- $p = append $p "updateStrategy.maxUnavailable has no effect with updateStrategy.type OnDelete: remove it" -}}
{{- else if eq $v.kind "StatefulSet" -}}
{{- $p = append $p "updateStrategy.maxUnavailable has no effect with kind StatefulSet, which has one relay: remove it" -}}
{{- end -}}
{{- end -}}
{{- range $name := list "podSecurityContext" "containerSecurityContext" -}}
{{- $security := default dict (get $v $name) -}}
{{- if and $security.runAsNonRoot (hasKey $security "runAsUser") (eq (toString $security.runAsUser) "0") -}}
{{- $p = append $p (printf "%s.runAsUser is 0, which %s.runAsNonRoot forbids: choose another user, or set it to null for the user of the image" $name $name) -}}
{{- end -}}
{{- end -}}

{{- /* Network */ -}}
{{- if not $v.hostNetwork -}}
{{- if eq $v.kind "DaemonSet" -}}
{{- $p = append $p "hostNetwork false with kind DaemonSet: a Service would send peers to any of the relays, but a peer must reach the very relay that issued its key; use kind StatefulSet or hostNetwork true" -}}
{{- end -}}
{{- if and $from (eq $v.service.type "LoadBalancer") (ne $from "value") -}}
{{- $p = append $p (printf "peerAddress.from %q with a Service of type LoadBalancer: peers dial the load balancer, not the node; use peerAddress.from \"value\" and set peerAddress.value to the name of the load balancer" $from) -}}
{{- end -}}
{{- if eq $v.service.type "NodePort" -}}
{{- $range := splitList "-" $v.service.nodePortRange -}}
{{- if and (eq (len $range) 2) (or (lt (int $v.peer.port) (first $range | int)) (gt (int $v.peer.port) (last $range | int))) -}}
{{- $p = append $p (printf "peer.port is %d: with service.type NodePort it is the node port, which the API server allows from %s only; set it to one of these (peer.listenPort may differ), or set service.nodePortRange to the --service-node-port-range of your API server" (int $v.peer.port) $v.service.nodePortRange) -}}
{{- end -}}
{{- range $name := list "loadBalancerClass" "loadBalancerSourceRanges" -}}
{{- if get $v.service $name -}}
{{- $p = append $p (printf "service.%s has no effect with service.type NodePort: remove it" $name) -}}
{{- end -}}
{{- end -}}
{{- else if ne $v.service.nodePortRange "30000-32767" -}}
{{- $p = append $p (printf "service.nodePortRange has no effect with service.type %s: remove it" $v.service.type) -}}
{{- end -}}
{{- else -}}
{{- range $name, $default := dict "type" "LoadBalancer" "nodePortRange" "30000-32767" "annotations" "" "loadBalancerClass" "" "loadBalancerSourceRanges" "" -}}
{{- $value := get $v.service $name -}}
{{- if and $value (ne (toString $value) $default) -}}
{{- $p = append $p (printf "service.%s has no effect with hostNetwork true, where peers dial the node and no Service exists: remove it" $name) -}}
{{- end -}}
{{- end -}}
{{- if $v.networkPolicy.enabled -}}
{{- $p = append $p "networkPolicy.enabled with hostNetwork true: a NetworkPolicy does not apply to the host network; remove it, and restrict the ports in the firewall of the nodes" -}}
{{- end -}}
{{- end -}}
{{- $ports := dict -}}
{{- $listen := ternary "peer.listenPort" "peer.port" (not (empty $v.peer.listenPort)) -}}
{{- range $entry := list (list $listen (include "aspia-relay.listenPort" .)) (list "admin.port" $v.admin.port) (list "metrics.port" (ternary $v.metrics.port 0 $v.metrics.enabled)) -}}
{{- $name := index $entry 0 -}}
{{- $port := index $entry 1 | int | toString -}}
{{- if ne $port "0" -}}
{{- with get $ports $port -}}
{{- $p = append $p (printf "%s and %s are both %s: expected different ports" . $name $port) -}}
{{- end -}}
{{- $_ := set $ports $port $name -}}
{{- end -}}
{{- end -}}

{{- /* Keys of relay.json that other values set. The schema accepts them, so that the message here can name the value. */ -}}
{{- $decided := dict
  "RouterAddress" "router.address"
  "RouterPort" "router.port"
  "RouterPublicKey" "router.publicKey"
  "PeerAddress" "peerAddress"
  "PeerPort" "peer.port"
  "ListenPort" "peer.listenPort"
  "DrainTimeout" "drainTimeoutSeconds"
  "FdStore" "fdStore.enabled"
  "FdStoreTimeout" "fdStore.timeout"
  "AdminListen" "admin.port"
  "AdminToken" "adminToken"
  "MetricsListen" "metrics.enabled and metrics.port"
  "MetricsToken" "metricsToken"
  "MetricsTlsCertificate" "metrics.tls.existingSecret"
  "MetricsTlsPrivateKey" "metrics.tls.existingSecret"
  "MetricsTlsClientCa" "metrics.tls.clientCa"
  "WatchConfig" "watchConfig" -}}
{{- range $name := keys $config | sortAlpha -}}
{{- with get $decided $name -}}
{{- $p = append $p (printf "config.%s cannot be set there: it comes from the value %s" $name .) -}}
{{- end -}}
{{- end -}}

{{- /* Secrets */ -}}
{{- if not (include "aspia-relay.adminTokenSecret" . | fromJson) -}}
{{- $p = append $p "adminToken is not set: name a Secret that holds it (adminToken.existingSecret.name); without a token, anyone who can reach the admin port (on the host network, anyone on the node) could stop the relay and end sessions" -}}
{{- end -}}
{{- range $name := list "adminToken" "metricsToken" -}}
{{- $token := get $v $name -}}
{{- if and $token.value $token.existingSecret.name -}}
{{- $p = append $p (printf "%s.value and %s.existingSecret.name are both set: set only one of them" $name $name) -}}
{{- end -}}
{{- end -}}

{{- /* Metrics */ -}}
{{- $tls := $v.metrics.tls -}}
{{- $metricsToken := include "aspia-relay.metricsTokenSecret" . | fromJson -}}
{{- if not $v.metrics.enabled -}}
{{- if $metricsToken -}}
{{- $p = append $p "metricsToken is set, but metrics.enabled is false: set it to true, or remove the token" -}}
{{- end -}}
{{- if $tls.existingSecret -}}
{{- $p = append $p "metrics.tls.existingSecret is set, but metrics.enabled is false: set it to true, or remove the Secret" -}}
{{- end -}}
{{- end -}}
{{- if not $tls.existingSecret -}}
{{- range $name, $value := dict "clientCa.existingSecret" $tls.clientCa.existingSecret "serverName" $tls.serverName "ca.existingSecret" $tls.ca.existingSecret "scraperSecret" $tls.scraperSecret -}}
{{- if $value -}}
{{- $p = append $p (printf "metrics.tls.%s is set, but metrics.tls.existingSecret, the certificate of the relay, is not" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.podMonitor.enabled $v.serviceMonitor.enabled -}}
{{- $p = append $p "podMonitor.enabled and serviceMonitor.enabled are both true: every relay would be counted twice; choose one" -}}
{{- end -}}
{{- range $name := list "podMonitor" "serviceMonitor" -}}
{{- if (get $v $name).enabled -}}
{{- if not $v.metrics.enabled -}}
{{- $p = append $p (printf "%s.enabled needs metrics.enabled: without it there is no port to scrape" $name) -}}
{{- else if not (or $metricsToken $tls.existingSecret) -}}
{{- $p = append $p (printf "%s.enabled needs metricsToken or metrics.tls.existingSecret: without them, anyone who can reach the port can read the metrics" $name) -}}
{{- end -}}
{{- if and $tls.existingSecret (not $tls.serverName) -}}
{{- $p = append $p (printf "metrics.tls.serverName is empty: with %s.enabled, expected a name that the certificate contains; Prometheus dials relays by address" $name) -}}
{{- end -}}
{{- if and $tls.clientCa.existingSecret (not $tls.scraperSecret) -}}
{{- $p = append $p (printf "metrics.tls.scraperSecret is empty: with metrics.tls.clientCa and %s.enabled, Prometheus needs a client certificate" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- range $name := list "podMonitor" "serviceMonitor" -}}
{{- $monitor := get $v $name -}}
{{- if and $monitor.enabled $v.prometheusRule.enabled (gt (include "aspia-relay.seconds" $monitor.interval | int) 30) -}}
{{- $p = append $p (printf "%s.interval is %q: the rules of prometheusRule.enabled expect at most 30s" $name $monitor.interval) -}}
{{- end -}}
{{- end -}}

{{- /* What the chart sets itself: a duplicate would make the manifest invalid or would be ignored. */ -}}
{{- $selected := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" -}}
{{- $labels := concat $selected (list "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart") -}}
{{- range $entry := list
  (list "podAnnotations" $v.podAnnotations (list "checksum/config" "kubectl.kubernetes.io/default-container"))
  (list "podLabels" $v.podLabels $selected)
  (list "podMonitor.labels" $v.podMonitor.labels $labels)
  (list "serviceMonitor.labels" $v.serviceMonitor.labels $labels)
  (list "prometheusRule.labels" $v.prometheusRule.labels $labels)
  (list "dashboard.labels" $v.dashboard.labels $labels) -}}
{{- $name := first $entry -}}
{{- range $key := keys (default dict (index $entry 1)) | sortAlpha -}}
{{- if has $key (last $entry) -}}
{{- $p = append $p (printf "%s: %s is set by the chart: remove it" $name $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $volume := $v.extraVolumes -}}
{{- if has $volume.name (list "config" "secrets" "node-address" "service-account-token") -}}
{{- $p = append $p (printf "extraVolumes: %s is the name of one of the chart's own volumes: choose another name" $volume.name) -}}
{{- end -}}
{{- end -}}
{{- range $mount := $v.extraVolumeMounts -}}
{{- if has (trimSuffix "/" (default "" $mount.mountPath)) (list "/etc/aspia" "/run/secrets/aspia-relay" "/run/aspia-relay") -}}
{{- $p = append $p (printf "extraVolumeMounts: %s is where the chart mounts a volume: choose another path" $mount.mountPath) -}}
{{- end -}}
{{- end -}}

{{- /* Environment */ -}}
{{- range $variable := $v.extraEnv -}}
{{- if hasPrefix "ASPIA_RELAY_" $variable.name -}}
{{- $p = append $p (printf "extraEnv: %s is a setting of the relay: set it in config, or in the value that decides it" $variable.name) -}}
{{- end -}}
{{- if and (hasSuffix "_HEADERS" $variable.name) $variable.value -}}
{{- $p = append $p (printf "extraEnv: %s usually holds a secret: use valueFrom.secretKeyRef instead of value" $variable.name) -}}
{{- end -}}
{{- if has $variable.name (list "NODE_NAME" "POD_NAME" "POD_NAMESPACE" "TERMINATION_MESSAGE_PATH") -}}
{{- $p = append $p (printf "extraEnv: %s is set by the chart: choose another name" $variable.name) -}}
{{- end -}}
{{- if and $v.tracing.endpoint (has $variable.name (list "OTEL_EXPORTER_OTLP_ENDPOINT" "OTEL_EXPORTER_OTLP_PROTOCOL" "OTEL_RESOURCE_ATTRIBUTES")) -}}
{{- $p = append $p (printf "extraEnv: %s is set by the chart with tracing.endpoint: remove one of the two" $variable.name) -}}
{{- end -}}
{{- end -}}

{{- range $p }}
  - {{ . }}
{{- end -}}
{{- end -}}
