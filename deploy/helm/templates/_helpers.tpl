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
{{/* The longest of all models: a table of settings.models may have its own. */}}
{{- define "inference-guard.inspect_timeout_s" -}}
{{- $longest := 5.0 -}}
{{- with get .Values.settings "inspect_timeout_s" -}}{{- $longest = float64 . -}}{{- end -}}
{{- range $name, $table := .Values.settings.models -}}
{{- with get $table "inspect_timeout_s" -}}{{- $longest = maxf $longest . -}}{{- end -}}
{{- end -}}
{{- $longest -}}
{{- end -}}
{{- define "inference-guard.drain_s" -}}{{- if hasKey .Values.settings "drain_s" -}}{{ .Values.settings.drain_s }}{{- else -}}5{{- end -}}{{- end -}}
{{- define "inference-guard.grace_s" -}}{{- if hasKey .Values.settings "grace_s" -}}{{ .Values.settings.grace_s }}{{- else -}}30{{- end -}}{{- end -}}

{{/* The model server's command line, as its container gets it. */}}
{{- define "inference-guard.serverWords" -}}
{{- join " " (concat .Values.modelServer.command (list (tpl (join " " .Values.modelServer.args) .))) -}}
{{- end -}}

{{/* A quantity in bytes; nothing where its unit is none of memory. */}}
{{- define "inference-guard.bytes" -}}
{{- $units := dict "bytes" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $number := regexFind "^[0-9.]+" (toString .) -}}
{{- with get $units (trimPrefix $number (toString .) | default "bytes") -}}{{- mulf $number . -}}{{- end -}}
{{- end -}}

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
