{{/* What is wrong with the values: a line each. */}}
{{- define "aspia-relay.problems" -}}
{{- $v := .Values -}}
{{- $p := list -}}
{{- $config := default dict $v.config -}}

{{- /* The form of texts: name, value, pattern, what is expected. An empty text is none; secrets are not shown. */ -}}
{{- $host := `^([A-Za-z0-9_.-]+|[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*:[0-9A-Fa-f.:]*)$` -}}
{{- $hostName := "a host name or an IP address, without a port and without brackets" -}}
{{- /* Of IPv6 roughly: the relay itself looks closer. */ -}}
{{- $ip4 := `(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}` -}}
{{- $ip := printf `^(%s|[0-9A-Fa-f]{0,4}(:[0-9A-Fa-f]{0,4}){2,7}|[0-9A-Fa-f]{0,4}(:[0-9A-Fa-f]{0,4}){1,6}:%s)$` $ip4 $ip4 -}}
{{- $duration := "a duration with a unit, such as 30s, 5m or 1h30m" -}}
{{- $forms := list
  (list "router.address" $v.router.address $host $hostName)
  (list "router.publicKey.value" $v.router.publicKey.value `^\s*[0-9A-Fa-f]{64}\s*$` "64 hex digits, the content of router.pub on the Router's machine")
  (list "peerAddress.value" $v.peerAddress.value $host $hostName)
  (list "peerAddress.template" $v.peerAddress.template `^[A-Za-z0-9_.-]*\{\{node\}\}[A-Za-z0-9_.-]*$` "a host name that contains {{node}} once, such as {{node}}.relay.example.com")
  (list "peerAddress.key" $v.peerAddress.key `^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$` "the key of an annotation or a label, such as example.com/relay-address")
  (list "config.ListenInterface" (get $config "ListenInterface") $ip "an IP address of the node, without a port and without brackets, or nothing for all")
  (list "config.MaxSessionDuration" (get $config "MaxSessionDuration") `^([0-9]+(ms|s|m|h|d))+$` $duration)
  (list "image.digest" $v.image.digest `^sha256:[0-9a-f]{64}$` "sha256: and 64 hex digits")
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
{{- $p = append $p (printf "%s.value is not shown: expected at least 16 letters, digits and signs of ASCII without blanks; openssl rand -hex 32 makes a good one" $name) -}}
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
{{- $p = append $p "router.publicKey is not given: set router.publicKey.value to the content of router.pub on the Router's machine, or name a ConfigMap or Secret that holds it (router.publicKey.existingConfigMap.name, router.publicKey.existingSecret.name)" -}}
{{- else if gt (len $given) 1 -}}
{{- $p = append $p (printf "%s are given: expected one of them, since the Router has one key" (join " and " (sortAlpha $given))) -}}
{{- end -}}

{{- /* PeerAddress */ -}}
{{- $from := $v.peerAddress.from -}}
{{- $needs := dict "template" "template" "value" "value" "nodeAnnotation" "key" "nodeLabel" "key" -}}
{{- $needed := get $needs $from -}}
{{- range $name := list "template" "value" "key" -}}
{{- $value := get $v.peerAddress $name -}}
{{- if and (eq $name $needed) (not $value) -}}
{{- $p = append $p (printf "peerAddress.%s is empty: peerAddress.from %q needs it" $name $from) -}}
{{- else if and $value (ne $name $needed) -}}
{{- $p = append $p (printf "peerAddress.%s %q has no effect with peerAddress.from %q: remove the one or change the other" $name $value $from) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $from "value") (eq $v.kind "DaemonSet") -}}
{{- $p = append $p "peerAddress.from \"value\" gives all relays of a DaemonSet one address, but a peer must reach the very relay that issued its key: take kind StatefulSet for one relay, or another peerAddress.from" -}}
{{- end -}}
{{- if and (include "aspia-relay.asksForNode" .) (not $v.rbac.create) (or $v.serviceAccount.create (not $v.serviceAccount.name)) -}}
{{- $p = append $p (printf "peerAddress.from %q needs the right to read Nodes: set rbac.create to true (the README of the chart says what can be read then), or serviceAccount.create to false and serviceAccount.name to a service account that may" $from) -}}
{{- end -}}
{{- if and $v.rbac.create (not (include "aspia-relay.asksForNode" .)) -}}
{{- $p = append $p (printf "rbac.create gives a right that nobody uses with peerAddress.from %q: remove it" $from) -}}
{{- end -}}
{{- if and $v.rbac.create (not $v.serviceAccount.create) (not $v.serviceAccount.name) -}}
{{- $p = append $p "rbac.create would give the right to read Nodes to the service account \"default\", and so to other pods: set serviceAccount.name, or serviceAccount.create to true" -}}
{{- end -}}

{{- /* Workload. The schema lets a Deployment pass, so that its successor can be named here. */ -}}
{{- if eq $v.kind "Deployment" -}}
{{- $p = append $p "kind \"Deployment\" is no longer there: take kind StatefulSet for one relay. A Deployment starts the next pod while the old one still drains, and two relays behind one address break each other's sessions. An upgrade replaces a Deployment of an earlier version of this chart: its relay drains, and new peers reach the one of the StatefulSet" -}}
{{- end -}}

{{- /* Network */ -}}
{{- if not $v.hostNetwork -}}
{{- if eq $v.kind "DaemonSet" -}}
{{- $p = append $p "hostNetwork false with kind DaemonSet: a Service would lead peers to any of the relays, but a peer must reach the very relay that issued its key; take kind StatefulSet, or hostNetwork true" -}}
{{- end -}}
{{- if and (eq $v.service.type "LoadBalancer") (ne $from "value") -}}
{{- $p = append $p (printf "peerAddress.from %q with a Service of type LoadBalancer: peers dial the load balancer, not the node; take peerAddress.from \"value\" and set peerAddress.value to the name of the load balancer" $from) -}}
{{- end -}}
{{- if eq $v.service.type "NodePort" -}}
{{- $range := splitList "-" $v.service.nodePortRange -}}
{{- if and (eq (len $range) 2) (or (lt (int $v.peer.port) (first $range | int)) (gt (int $v.peer.port) (last $range | int))) -}}
{{- $p = append $p (printf "peer.port is %d: with service.type NodePort it is the port of the node, which the API server allows from %s only; set it to one of these (peer.listenPort may be another), or service.nodePortRange to the --service-node-port-range of your API server" (int $v.peer.port) $v.service.nodePortRange) -}}
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
{{- $p = append $p (printf "service.%s has no effect with hostNetwork true, where peers dial the node and there is no Service: remove it" $name) -}}
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

{{- /* Keys of relay.json that other values decide. The schema lets them pass, so that it can be said here which. */ -}}
{{- $decided := dict
  "RouterAddress" "router.address"
  "RouterPort" "router.port"
  "RouterPublicKey" "router.publicKey"
  "PeerAddress" "peerAddress"
  "PeerPort" "peer.port"
  "ListenPort" "peer.listenPort"
  "DrainTimeout" "drainTimeoutSeconds"
  "AdminListen" "admin.port"
  "AdminToken" "adminToken"
  "MetricsListen" "metrics.enabled and metrics.port"
  "MetricsToken" "metricsToken"
  "MetricsTlsCertificate" "metrics.tls.existingSecret"
  "MetricsTlsPrivateKey" "metrics.tls.existingSecret"
  "MetricsTlsClientCa" "metrics.tls.clientCa" -}}
{{- range $name := keys $config | sortAlpha -}}
{{- with get $decided $name -}}
{{- $p = append $p (printf "config.%s cannot be set there: it comes from the value %s" $name .) -}}
{{- end -}}
{{- end -}}

{{- /* Secrets */ -}}
{{- if not (include "aspia-relay.adminTokenSecret" . | fromJson) -}}
{{- $p = append $p "adminToken is not given: name a Secret that holds it (adminToken.existingSecret.name); without a token, everybody who reaches the admin port (on the host network, everybody on the node) could stop the relay and end sessions" -}}
{{- end -}}
{{- range $name := list "adminToken" "metricsToken" -}}
{{- $token := get $v $name -}}
{{- if and $token.value $token.existingSecret.name -}}
{{- $p = append $p (printf "%s.value and %s.existingSecret.name are both given: expected one of them" $name $name) -}}
{{- end -}}
{{- end -}}

{{- /* Metrics */ -}}
{{- $tls := $v.metrics.tls -}}
{{- $metricsToken := include "aspia-relay.metricsTokenSecret" . | fromJson -}}
{{- if not $v.metrics.enabled -}}
{{- if $metricsToken -}}
{{- $p = append $p "metricsToken is given, but metrics.enabled is false: set it to true, or remove the token" -}}
{{- end -}}
{{- if $tls.existingSecret -}}
{{- $p = append $p "metrics.tls.existingSecret is given, but metrics.enabled is false: set it to true, or remove the Secret" -}}
{{- end -}}
{{- end -}}
{{- if not $tls.existingSecret -}}
{{- range $name, $value := dict "clientCa.existingSecret" $tls.clientCa.existingSecret "serverName" $tls.serverName "ca.existingSecret" $tls.ca.existingSecret "scraperSecret" $tls.scraperSecret -}}
{{- if $value -}}
{{- $p = append $p (printf "metrics.tls.%s is given, but metrics.tls.existingSecret, the certificate of the relay, is not" $name) -}}
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
{{- $p = append $p (printf "%s.enabled needs metricsToken or metrics.tls.existingSecret: without them, everybody who reaches the port reads the metrics" $name) -}}
{{- end -}}
{{- if and $tls.existingSecret (not $tls.serverName) -}}
{{- $p = append $p (printf "metrics.tls.serverName is empty: with %s.enabled, expected a name that stands in the certificate; Prometheus dials relays by address" $name) -}}
{{- end -}}
{{- if and $tls.clientCa.existingSecret (not $tls.scraperSecret) -}}
{{- $p = append $p (printf "metrics.tls.scraperSecret is empty: with metrics.tls.clientCa and %s.enabled, Prometheus needs a certificate to show" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- range $name := list "podMonitor" "serviceMonitor" -}}
{{- $monitor := get $v $name -}}
{{- if and $monitor.enabled $v.prometheusRule.enabled (gt (include "aspia-relay.seconds" $monitor.interval | int) 30) -}}
{{- $p = append $p (printf "%s.interval is %q: the rules of prometheusRule.enabled expect 30s at most" $name $monitor.interval) -}}
{{- end -}}
{{- end -}}

{{- /* What the chart sets by itself: a second one would make the manifest invalid, or would not count. */ -}}
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
{{- $p = append $p (printf "extraVolumes: %s is the name of a volume of the chart: choose another name" $volume.name) -}}
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
{{- $p = append $p (printf "extraEnv: %s is a setting of the relay: expected it in config, or in the value that decides it" $variable.name) -}}
{{- end -}}
{{- if and (hasSuffix "_HEADERS" $variable.name) $variable.value -}}
{{- $p = append $p (printf "extraEnv: the value of %s usually holds a secret: expected valueFrom.secretKeyRef" $variable.name) -}}
{{- end -}}
{{- if has $variable.name (list "NODE_NAME" "POD_NAME" "POD_NAMESPACE" "TERMINATION_MESSAGE_PATH") -}}
{{- $p = append $p (printf "extraEnv: %s is set by the chart: choose another name" $variable.name) -}}
{{- end -}}
{{- if and $v.tracing.endpoint (has $variable.name (list "OTEL_EXPORTER_OTLP_ENDPOINT" "OTEL_EXPORTER_OTLP_PROTOCOL" "OTEL_RESOURCE_ATTRIBUTES")) -}}
{{- $p = append $p (printf "extraEnv: %s is set by the chart with tracing.endpoint: remove the one or the other" $variable.name) -}}
{{- end -}}
{{- end -}}

{{- range $p }}
  - {{ . }}
{{- end -}}
{{- end -}}
