{{/* The guard's container, the same as a native sidecar and as a second container. */}}
{{- define "inference-guard.container" -}}
{{- $tls := .Values.tls.secret -}}
- name: guard
  image: {{ include "inference-guard.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if eq .Values.guard.sidecar "native" }}
  restartPolicy: Always
  {{- end }}
  args:
    - serve
    {{- if ne .Values.bundle.from "none" }}
    - --bundle={{ include "inference-guard.bundleFolder" . }}
    {{- end }}
    - --upstream=127.0.0.1:{{ .Values.modelServer.grpcPort }}
    - --listen=0.0.0.0:{{ .Values.ports.inference }}
    - --metrics-listen=0.0.0.0:{{ .Values.ports.metrics }}
    # In a directory that no other container mounts: on loopback the whole pod could drain and reload the guard.
    - --admin-listen=unix:/tmp/admin.sock
    - --config=/etc/guard/guard.toml
  {{- $env := list }}
  {{- if not (hasKey .Values.settings "threads") }}
  {{- $env = append $env (dict "name" "GUARD_THREADS" "valueFrom" (dict "resourceFieldRef" (dict "resource" "requests.cpu"))) }}
  {{- end }}
  {{- if eq .Values.bundle.from "none" }}{{ $env = append $env (dict "name" "GUARD_BUNDLE" "value" "") }}{{ end }}
  {{- if .Values.ports.rest }}
  {{- $env = append $env (dict "name" "GUARD_REST_LISTEN" "value" (printf "0.0.0.0:%v" .Values.ports.rest)) }}
  {{- end }}
  {{- if .Values.modelServer.httpPort }}
  {{- $env = append $env (dict "name" "GUARD_REST_UPSTREAM" "value" (printf "http://127.0.0.1:%v" .Values.modelServer.httpPort)) }}
  {{- end }}
  {{- if $tls }}
  {{- $env = append $env (dict "name" "GUARD_TLS_CERTIFICATE" "value" "/etc/guard-tls/tls.crt") }}
  {{- $env = append $env (dict "name" "GUARD_TLS_KEY" "value" "/etc/guard-tls/tls.key") }}
  {{- if .Values.tls.clientCA }}{{ $env = append $env (dict "name" "GUARD_TLS_CLIENT_CA" "value" "/etc/guard-tls/ca.crt") }}{{ end }}
  {{- end }}
  {{- if include "inference-guard.isSigned" . }}{{ $env = append $env (dict "name" "GUARD_TRUSTED_KEYS" "value" (include "inference-guard.trustedKeyPaths" .)) }}{{ end }}
  {{- if .Values.audit.enabled }}{{ $env = append $env (dict "name" "GUARD_AUDIT_DIR" "value" "/audit") }}{{ end }}
  {{- with concat $env .Values.guard.env }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  # The names are for KServe and Istio, which tell gRPC by them; nothing here refers to a port by its name.
  ports:
    - {name: grpc-inference, containerPort: {{ .Values.ports.inference }}}
    - {name: metrics, containerPort: {{ .Values.ports.metrics }}}
    {{- if .Values.ports.rest }}
    - {name: http-inference, containerPort: {{ .Values.ports.rest }}}
    {{- end }}
  # Start-up and liveness ask for the guard alone: it starts before its upstream, and must not die with it.
  {{- range $probe, $asked := dict "startupProbe" "" "livenessProbe" "" "readinessProbe" "readiness" }}
  {{ $probe }}:
    {{- if or $tls (eq $.Values.guard.probes "http") }}
    # Kubelets speak no TLS to a gRPC port.
    httpGet: {path: {{ ternary "/readyz" "/livez" (not (empty $asked)) }}, port: {{ $.Values.ports.metrics }}}
    {{- else }}
    grpc: {port: {{ $.Values.ports.inference }}, service: {{ $asked | quote }}}
    {{- end }}
    {{- if eq $probe "startupProbe" }}
    periodSeconds: 2
    failureThreshold: 60
    {{- else if eq $probe "livenessProbe" }}
    periodSeconds: 10
    timeoutSeconds: 5
    {{- else }}
    periodSeconds: 5
    timeoutSeconds: 5
    failureThreshold: 2
    {{- end }}
  {{- end }}
  lifecycle:
    preStop:
      # Clients are told to go elsewhere while the model server still answers. Returns after drain_s, or at once with an
      # error, which the kubelet notes and does not wait for.
      exec: {command: [guard, drain, "unix:/tmp/admin.sock"]}
  resources:
    {{- toYaml .Values.guard.resources | nindent 4 }}
  securityContext:
    {{- include "inference-guard.lockedDown" . | nindent 4 }}
  volumeMounts:
    {{- if ne .Values.bundle.from "none" }}
    - {name: bundle, mountPath: /bundle, readOnly: true}
    {{- end }}
    - {name: guard-config, mountPath: /etc/guard, readOnly: true}
    - {name: guard-tmp, mountPath: /tmp}
    {{- if $tls }}
    # No subPath: what is mounted so is never updated, and a renewed certificate would not arrive.
    - {name: guard-tls, mountPath: /etc/guard-tls, readOnly: true}
    {{- end }}
    {{- if include "inference-guard.isSigned" . }}
    - {name: guard-trusted-keys, mountPath: /etc/guard-keys, readOnly: true}
    {{- end }}
    {{- if .Values.audit.enabled }}
    - {name: audit, mountPath: /audit}
    {{- end }}
    {{- with .Values.guard.volumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
