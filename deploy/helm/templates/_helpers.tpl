{{/* Names, labels and what several templates share. */}}
{{- define "inference-guard.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "inference-guard.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "inference-guard.labels" -}}
{{ include "inference-guard.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "inference-guard.image" -}}
{{- with .Values.image -}}
{{- ternary (printf "%s@%s" .repository .digest) (printf "%s:%s" .repository .tag) (not (empty .digest)) -}}
{{- end -}}
{{- end -}}

{{/* The volume that holds the bundle, and the folder in which the guard finds it. */}}
{{- define "inference-guard.bundleVolume" -}}
{{- with .Values.bundle -}}
{{- if eq .from "claim" -}}
persistentVolumeClaim: {claimName: {{ .claim }}, readOnly: true}
{{- else if eq .from "image" -}}
image: {reference: {{ .image.reference }}, pullPolicy: {{ .image.pullPolicy }}}
{{- else -}}
emptyDir: {sizeLimit: {{ .sizeLimit }}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The folder of the bundle, as the guard's container sees it. */}}
{{- define "inference-guard.bundleFolder" -}}
{{- with .Values.bundle -}}
{{- if eq .from "copy" -}}/bundle{{- else -}}{{ clean (printf "/bundle/%s" (.path | default (eq .from "image" | ternary "models" ""))) }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* What no container of ours needs is taken from it. */}}
{{- define "inference-guard.lockedDown" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
{{- end -}}

{{- define "inference-guard.trustedKeyPaths" -}}
{{- $paths := list -}}
{{- range .Values.bundle.trustedKeys.files -}}{{- $paths = append $paths (printf "/etc/guard-keys/%s" .) -}}{{- end -}}
{{- join "," $paths -}}
{{- end -}}

{{- define "inference-guard.isSigned" -}}
{{- if .Values.bundle.trustedKeys.configMap -}}true{{- end -}}
{{- end -}}

{{/* Seconds that a pod takes to stop at most: the model server's pause, into which the drain falls, and its exit, then
     the guard's grace_s for what is under way; and a margin. */}}
{{- define "inference-guard.stop_s" -}}
{{- add .Values.modelServer.pause_s .Values.modelServer.exit_s (ceil (include "inference-guard.grace_s" . | float64)) 15 -}}
{{- end -}}
{{- define "inference-guard.inspect_timeout_s" -}}{{- if hasKey .Values.settings "inspect_timeout_s" -}}{{ .Values.settings.inspect_timeout_s }}{{- else -}}5{{- end -}}{{- end -}}
{{- define "inference-guard.drain_s" -}}{{- if hasKey .Values.settings "drain_s" -}}{{ .Values.settings.drain_s }}{{- else -}}5{{- end -}}{{- end -}}
{{- define "inference-guard.grace_s" -}}{{- if hasKey .Values.settings "grace_s" -}}{{ .Values.settings.grace_s }}{{- else -}}30{{- end -}}{{- end -}}

{{/* A value as TOML writes it. */}}
{{- define "inference-guard.toml" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- else if or (kindIs "string" .) (kindIs "slice" .) -}}
{{- toJson . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}
