{{/* The pod of a relay, and of the test that looks at an installation with the same settings and secrets. */}}

{{/* Called with root and test (true or false). */}}
{{- define "aspia-relay.podSpec" -}}
{{- $root := .root -}}
{{- $test := .test -}}
{{- with .root.Values -}}
serviceAccountName: {{ include "aspia-relay.serviceAccountName" $root }}
# The process on the internet holds no credential of the cluster.
automountServiceAccountToken: false
# Variables made for Services would look like settings of the relay.
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
# Longer than the wait for an address and the doctor take at worst. Ends the test also where an image cannot be pulled. It
# counts from when the pod has a node, so nothing below may keep the pod from a node that has a relay.
activeDeadlineSeconds: 280
{{- if or .hostNetwork (and (eq .service.type "NodePort") (ne .peerAddress.from "value")) }}
# On a node that has a relay: what peers dial is an address of that node. The labels are the test's own, too. So, where no
# relay has a node, the scheduler puts the test anywhere, and it says that it finds none, instead of waiting for a node.
affinity:
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            {{- include "aspia-relay.instanceLabels" $root | nindent 12 }}
{{- end }}
{{- else }}
# The relay stops by itself when all sessions have ended, or after drainTimeoutSeconds; the rest is for the last traces.
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
  # A relay stays on a node that is cordoned.
  - key: node.kubernetes.io/unschedulable
    operator: Exists
    effect: NoSchedule
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  # The group of files with secrets, which nobody else can read.
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- if include "aspia-relay.asksForNode" $root }}
initContainers:
  # Asks the API server for this pod's Node until it has an address, says in its log what it waits for, and writes the
  # address that peers dial. Only this container has the token of the service account.
  - name: node-address
    {{- include "aspia-relay.containerBasics" (dict "root" $root "test" $test) | nindent 4 }}
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
      # The node need not be one of a relay. Without an address the doctor says what is wrong.
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
    {{- include "aspia-relay.containerBasics" (dict "root" $root "test" $test) | nindent 4 }}
    {{- if and $test .hostNetwork }}
    # On the host network the doctor sees the relay of its node, and there must be one.
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
      # Declared, so that the scheduler puts nothing else with the same port on the node.
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
    # The kubelet asks from the network of the node. On the host network that is the pod's network, too, so that
    # 127.0.0.1 of the one is that of the other. The admin interface never speaks TLS, answers /livez and /readyz
    # without a token, and takes IP addresses as Host.
    startupProbe:
      httpGet:
        {{- include "aspia-relay.probeTarget" (dict "values" . "path" "/livez") | nindent 8 }}
      periodSeconds: 2
      failureThreshold: 30
      {{- include "aspia-relay.probeGrace" $root | nindent 6 }}
    # Does not fail because the Router is away: a restart would only end the sessions.
    livenessProbe:
      httpGet:
        {{- include "aspia-relay.probeTarget" (dict "values" . "path" "/livez") | nindent 8 }}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 3
      {{- include "aspia-relay.probeGrace" $root | nindent 6 }}
    # 503 without a link to the Router: a rollout that breaks the link stops at the first node.
    readinessProbe:
      httpGet:
        {{- include "aspia-relay.probeTarget" (dict "values" . "path" "/readyz") | nindent 8 }}
      periodSeconds: 5
      timeoutSeconds: 5
    {{- end }}
    volumeMounts:
      # As a directory: a single file would not follow changes of the ConfigMap.
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
      # For the owner and fsGroup; the relay warns of secrets that everybody can read.
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
            # The shortest that there is. The kubelet renews it while the container waits for an address.
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

{{/* What every container has. Called with root and test (true or false). */}}
{{- define "aspia-relay.containerBasics" -}}
image: {{ include "aspia-relay.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
# Why a container failed stands in `kubectl describe pod`: the program writes it into this file. FallbackToLogsOnError
# would take the last lines of the log, and put peers' addresses where no right to logs is needed to read them.
terminationMessagePath: /dev/termination-log
terminationMessagePolicy: File
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- if .test }}
# Little, so that the test fits on a node beside its relay.
resources:
  requests:
    cpu: 10m
    memory: 32Mi
  {{- with pick (dig "limits" dict (default dict .root.Values.resources)) "cpu" "memory" }}
  # Those of the relay: they keep the pod from no node, and the doctor compares the settings with them.
  limits:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- else }}
resources:
  {{- default dict .root.Values.resources | toYaml | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Tells the program where it writes why it failed. */}}
{{- define "aspia-relay.terminationMessage" -}}
- name: TERMINATION_MESSAGE_PATH
  value: /dev/termination-log
{{- end -}}

{{/* For the probes that restart the relay. */}}
{{- define "aspia-relay.probeGrace" -}}
# A relay that does not answer does not drain either: it is not waited for as long as for a pod that is deleted.
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
