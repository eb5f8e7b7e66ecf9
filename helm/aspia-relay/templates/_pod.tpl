{{/* The pod of a relay, and that of the test, which checks an installation with the same settings and secrets. */}}

{{/* Called with root and test (true or false). */}}
{{- define "aspia-relay.podSpec" -}}
{{- $root := .root -}}
{{- $test := .test -}}
{{- with .root.Values -}}
serviceAccountName: {{ include "aspia-relay.serviceAccountName" $root }}
# The process that faces the internet holds no credential of the cluster.
automountServiceAccountToken: false
# The variables that Kubernetes makes for Services would look like settings of the relay.
enableServiceLinks: false
{{- if .hostNetwork }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- end }}
{{- with .dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and .priorityClassName (not $test) }}
priorityClassName: {{ .priorityClassName }}
{{- end }}
{{- with .imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $test }}
restartPolicy: Never
# Longer than the wait for an address and the doctor take in the worst case. It also ends the test when an image cannot be
# pulled. The time counts from when the pod has a node, so nothing below may keep the pod off a node that has a relay.
activeDeadlineSeconds: 280
{{- if or .hostNetwork (and (eq .service.type "NodePort") (ne .peerAddress.from "value")) }}
# Runs on a node that has a relay, because what peers dial is an address of that node. The test itself has these labels,
# too: if no relay has a node, the scheduler places the test anywhere, and it reports that it found no relay instead of
# staying unscheduled.
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "aspia-relay.instanceLabels" $root | nindent 12 }}
{{- end }}
{{- else }}
# With the descriptor store, a relay hands its sessions over and stops at once. Without one, or if the store does not answer,
# it stops when all sessions have ended or after drainTimeoutSeconds. The rest is for the last traces.
terminationGracePeriodSeconds: {{ add .drainTimeoutSeconds 10 }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- if or .tolerations $test }}
tolerations:
  {{- with .tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if $test }}
  # A relay keeps running on a cordoned node.
  - key: node.kubernetes.io/unschedulable
    operator: Exists
    effect: NoSchedule
  {{- end }}
{{- end }}
securityContext:
  {{- include "aspia-relay.podSecurity" $root | nindent 2 }}
{{- if include "aspia-relay.asksForNode" $root }}
initContainers:
  # Queries the API server for this pod's Node until it has an address, logs what it is waiting for, and writes the address
  # that peers dial to a file. Only this container has the token of the service account.
  - name: node-address
    {{- include "aspia-relay.containerBasics" (dict "root" $root "test" $test "binds" false) | nindent 4 }}
    args:
      - --node-address
      {{- if eq .peerAddress.from "nodeAnnotation" }}
      - {{ printf "annotation=%s" .peerAddress.key | quote }}
      {{- else if eq .peerAddress.from "nodeLabel" }}
      - {{ printf "label=%s" .peerAddress.key | quote }}
      {{- else }}
      - external-ip
      {{- end }}
      - --output
      - /run/aspia-relay/peer-address
      {{- if $test }}
      # The node need not have a relay. Without an address, the doctor says what is wrong.
      - --wait-at-most=20s
      {{- end }}
    env:
      {{- include "aspia-relay.terminationMessage" $root | nindent 6 }}
      - name: NODE_NAME
        valueFrom:
          fieldRef:
            fieldPath: spec.nodeName
    volumeMounts:
      - name: node-address
        mountPath: /run/aspia-relay
      - name: service-account-token
        mountPath: /var/run/secrets/kubernetes.io/serviceaccount
        readOnly: true
{{- end }}
containers:
  - name: {{ ternary "doctor" "relay" $test }}
    {{- include "aspia-relay.containerBasics" (dict "root" $root "test" $test "binds" true) | nindent 4 }}
    {{- if and $test .hostNetwork }}
    # On the host network the doctor can see the relay of its node, so there must be one.
    args: [--doctor, --running]
    {{- else if $test }}
    args: [--doctor]
    {{- end }}
    env:
      {{- include "aspia-relay.env" $root | nindent 6 }}
    {{- if not $test }}
    ports:
      - name: peer
        containerPort: {{ include "aspia-relay.listenPort" $root }}
        {{- if .hostNetwork }}
        hostPort: {{ include "aspia-relay.listenPort" $root }}
        {{- end }}
      # Declared so that the scheduler places nothing else with the same port on the node.
      - name: admin
        containerPort: {{ .admin.port }}
        {{- if .hostNetwork }}
        hostPort: {{ .admin.port }}
        hostIP: 127.0.0.1
        {{- end }}
      {{- if .metrics.enabled }}
      - name: metrics
        containerPort: {{ .metrics.port }}
        {{- if .hostNetwork }}
        hostPort: {{ .metrics.port }}
        {{- end }}
      {{- end }}
    # The kubelet probes from the network of the node. On the host network that is also the pod's network, so both share
    # 127.0.0.1. The admin interface never uses TLS, answers /livez and /readyz without a token, and accepts an IP address
    # as Host.
    startupProbe:
      httpGet:
        {{- include "aspia-relay.probeTarget" (dict "values" . "path" "/livez") | nindent 8 }}
      periodSeconds: 2
      failureThreshold: 30
      {{- include "aspia-relay.probeGrace" $root | nindent 6 }}
    # Does not fail when the Router is unreachable, because a restart would only end the sessions.
    livenessProbe:
      httpGet:
        {{- include "aspia-relay.probeTarget" (dict "values" . "path" "/livez") | nindent 8 }}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 3
      {{- include "aspia-relay.probeGrace" $root | nindent 6 }}
    # 503 without a link to the Router, so a rollout that breaks the link stops at the first node.
    readinessProbe:
      httpGet:
        {{- include "aspia-relay.probeTarget" (dict "values" . "path" "/readyz") | nindent 8 }}
      periodSeconds: 5
      timeoutSeconds: 5
    {{- end }}
    volumeMounts:
      # Mounted as a directory: a single file would not follow changes of the ConfigMap.
      - name: config
        mountPath: /etc/aspia
        readOnly: true
      - name: secrets
        mountPath: /run/secrets/aspia-relay
        readOnly: true
      {{- if include "aspia-relay.asksForNode" $root }}
      - name: node-address
        mountPath: /run/aspia-relay
        readOnly: true
      {{- end }}
      {{- with .extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: config
    configMap:
      name: {{ include "aspia-relay.fullname" $root }}
  - name: secrets
    projected:
      # Readable for the owner and fsGroup; the relay warns about secrets that everyone can read.
      defaultMode: 288 # 0440
      sources:
        {{- include "aspia-relay.secretSources" $root | trim | nindent 8 }}
  {{- if include "aspia-relay.asksForNode" $root }}
  - name: node-address
    emptyDir:
      medium: Memory
      sizeLimit: 1Mi
  - name: service-account-token
    projected:
      defaultMode: 288 # 0440
      sources:
        - serviceAccountToken:
            path: token
            # The shortest that Kubernetes allows. The kubelet renews it while the container waits for an address.
            expirationSeconds: 600
        - configMap:
            name: kube-root-ca.crt
            items:
              - key: ca.crt
                path: ca.crt
  {{- end }}
  {{- with .extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The security context of every pod. */}}
{{- define "aspia-relay.podSecurity" -}}
{{- $security := default dict .Values.podSecurityContext | deepCopy -}}
{{- /* The same for the relay and its descriptor store, which pass each other sockets. */ -}}
{{- with .Values.seLinuxOptions }}{{ $_ := set $security "seLinuxOptions" . }}{{ end -}}
{{- toYaml $security -}}
{{- end -}}

{{/* What every container has besides its image. Called with root and binds (whether it listens on the ports of the relay). */}}
{{- define "aspia-relay.containerSecurity" -}}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
# The program writes why it failed into this file, and `kubectl describe pod` shows it. FallbackToLogsOnError would take the
# last lines of the log instead, and so show peers' addresses to users who may not read logs.
terminationMessagePath: /dev/termination-log
terminationMessagePolicy: File
{{- $security := default dict .root.Values.containerSecurityContext | deepCopy }}
{{- if and .binds (include "aspia-relay.hasLowPort" .root) }}
{{- $capabilities := default dict $security.capabilities }}
{{- $_ := set $capabilities "add" (append (default list $capabilities.add) "NET_BIND_SERVICE" | uniq) }}
{{- $_ := set $security "capabilities" $capabilities }}
{{- end }}
securityContext:
  {{- toYaml $security | nindent 2 }}
{{- end -}}

{{/* "true" if the relay listens on a port below 1024. */}}
{{- define "aspia-relay.hasLowPort" -}}
{{- $metrics := ternary .Values.metrics.port 65535 .Values.metrics.enabled -}}
{{- if lt (min (include "aspia-relay.listenPort" .) .Values.admin.port $metrics | int) 1024 -}}true{{- end -}}
{{- end -}}

{{/* Fields of the containers of relays and tests. Called with root, test and binds (true or false). */}}
{{- define "aspia-relay.containerBasics" -}}
image: {{ include "aspia-relay.image" .root | quote }}
{{ include "aspia-relay.containerSecurity" (dict "root" .root "binds" .binds) }}
{{- if .test }}
# Small, so that the test fits on a node beside its relay.
resources:
  requests:
    cpu: 10m
    memory: 32Mi
  {{- with pick (dig "limits" dict (default dict .root.Values.resources)) "cpu" "memory" }}
  # The limits of the relay: they keep the pod off no node, and the doctor compares the settings with them.
  limits:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- else }}
resources:
  {{- default dict .root.Values.resources | toYaml | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Tells the program where to write why it failed. */}}
{{- define "aspia-relay.terminationMessage" -}}
- name: TERMINATION_MESSAGE_PATH
  value: /dev/termination-log
{{- end -}}

{{/* For the probes that restart the relay. */}}
{{- define "aspia-relay.probeGrace" -}}
# A relay that does not answer does not drain either, so it gets less time than a pod that is deleted.
terminationGracePeriodSeconds: {{ .Values.probes.terminationGracePeriodSeconds }}
{{- end -}}

{{/* Called with values and path. */}}
{{- define "aspia-relay.probeTarget" -}}
path: {{ .path }}
port: admin
{{- if .values.hostNetwork }}
host: 127.0.0.1
{{- end }}
{{- end -}}
