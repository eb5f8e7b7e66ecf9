{{/* The descriptor store. */}}

{{/* "true" if the relays have one. The relay of a StatefulSet may start again on another node, where the store of the old node
     cannot be reached; the network of a pod ends with the pod, and with it all connections. */}}
{{- define "aspia-relay.hasFdStore" -}}
{{- if and .Values.fdStore.enabled (eq .Values.kind "DaemonSet") -}}true{{- end -}}
{{- end -}}

{{- define "aspia-relay.fdStoreLabels" -}}
{{ include "aspia-relay.instanceLabels" . }}
app.kubernetes.io/component: fd-store
{{- end -}}

{{/* The image of the relay, except for what fdStore.image says. */}}
{{- define "aspia-relay.fdStoreImage" -}}
{{- $own := .Values.fdStore.image -}}
{{- $repository := default .Values.image.repository $own.repository -}}
{{- if $own.digest -}}
{{- printf "%s@%s" $repository $own.digest -}}
{{- else if or $own.repository $own.tag -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion (default .Values.image.tag $own.tag)) -}}
{{- else -}}
{{- include "aspia-relay.image" . -}}
{{- end -}}
{{- end -}}

{{/* Where relay and store meet: a name that belongs to the network of the node. No value that an upgrade may change is part of
     it, such as the port: the store keeps its pods in an upgrade, so the new relay would look for another name than the old
     one, and the store would keep the old relay's ports. A slash separates its parts, since no namespace has one. Such a name
     has at most 107 bytes. */}}
{{- define "aspia-relay.fdStoreAddress" -}}
{{- $name := printf "aspia-relay/%s/%s" .Release.Namespace (include "aspia-relay.fullname" .) -}}
{{- if gt (len $name) 107 -}}
{{- $name = printf "%s-%s" (trunc 98 $name) (sha256sum $name | trunc 8) -}}
{{- end -}}
- name: ASPIA_RELAY_FD_STORE
  value: {{ printf "@%s" $name | quote }}
{{- end -}}

{{- define "aspia-relay.fdStoreProbe" -}}
exec:
  command: [/usr/local/bin/aspia_relay, --healthcheck, --fd-store]
timeoutSeconds: 5
{{- end -}}

{{- define "aspia-relay.fdStoreSpec" -}}
{{- with .Values -}}
# It talks to nothing but the relay of its node, and not to the API server.
serviceAccountName: {{ include "aspia-relay.serviceAccountName" $ }}
automountServiceAccountToken: false
enableServiceLinks: false
# Shares the network of the node with the relay, for the name through which they meet. It opens no port.
hostNetwork: true
dnsPolicy: Default
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
# It stops at once. A relay that is connected goes on, and puts its sessions into the next store.
terminationGracePeriodSeconds: 10
# The nodes of the relays.
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with dig "nodeAffinity" dict (default dict .affinity) }}
affinity:
  nodeAffinity:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "aspia-relay.podSecurity" $ | nindent 2 }}
containers:
  - name: fd-store
    image: {{ include "aspia-relay.fdStoreImage" $ | quote }}
    args: [--fd-store]
    {{- include "aspia-relay.containerSecurity" (dict "root" $ "binds" false) | nindent 4 }}
    resources:
      {{- default dict .fdStore.resources | toYaml | nindent 6 }}
    env:
      {{- include "aspia-relay.terminationMessage" $ | nindent 6 }}
      {{- include "aspia-relay.fdStoreAddress" $ | nindent 6 }}
      - name: ASPIA_RELAY_FD_STORE_TIMEOUT
        value: {{ .fdStore.timeout | quote }}
      # Relay and store prove to each other that they know the token: a pod of somebody else may have the same user.
      - name: ASPIA_RELAY_ADMIN_TOKEN_FILE
        value: /run/secrets/aspia-relay/admin-token
    startupProbe:
      {{- include "aspia-relay.fdStoreProbe" $ | nindent 6 }}
      periodSeconds: 2
      failureThreshold: 30
    livenessProbe:
      {{- include "aspia-relay.fdStoreProbe" $ | nindent 6 }}
      periodSeconds: 15
      failureThreshold: 3
    readinessProbe:
      {{- include "aspia-relay.fdStoreProbe" $ | nindent 6 }}
      periodSeconds: 15
    volumeMounts:
      - name: secrets
        mountPath: /run/secrets/aspia-relay
        readOnly: true
volumes:
  - name: secrets
    projected:
      defaultMode: 288 # 0440
      sources:
        {{- include "aspia-relay.adminTokenSource" $ | trim | nindent 8 }}
{{- end }}
{{- end -}}
