{{/* What the schema cannot tell: each fault is one line that says what to set instead. */}}
{{- define "inference-guard.checks" -}}
{{- $owned := dict
  "listen" "ports.inference" "rest_listen" "ports.rest" "metrics_listen" "ports.metrics" "admin_listen" "none: it is a socket in the guard's own folder"
  "upstream" "modelServer.grpcPort" "rest_upstream" "modelServer.httpPort"
  "bundle" "bundle.from" "tls_certificate" "tls.secret" "tls_key" "tls.secret" "tls_client_ca" "tls.clientCA"
  "trusted_keys" "bundle.trustedKeys" "audit_dir" "audit.enabled" -}}
{{- range $setting, $value := $owned -}}
{{- if hasKey $.Values.settings $setting -}}
{{- fail (printf "settings.%s: the chart sets it; use the value %s" $setting $value) -}}
{{- end -}}
{{- end -}}
{{- $version := .Values.kubeVersion | default .Capabilities.KubeVersion.Version -}}
{{- if semverCompare "<1.27.0-0" $version -}}
{{- fail (printf "the chart needs Kubernetes 1.27 or later, this is %s; set kubeVersion if you render for another" $version) -}}
{{- end -}}
{{- if and (eq .Values.guard.sidecar "native") (semverCompare "<1.29.0-0" $version) -}}
{{- fail (printf "guard.sidecar: native needs Kubernetes 1.29 or later, this is %s; set guard.sidecar: plain" $version) -}}
{{- end -}}
{{- if and (eq .Values.bundle.from "image") (semverCompare "<1.35.0-0" $version) -}}
{{- fail (printf "bundle.from: image needs Kubernetes 1.35 or later, this is %s; set bundle.from: copy" $version) -}}
{{- end -}}
{{- if and (has .Values.bundle.from (list "image" "copy")) (not .Values.bundle.image.reference) -}}
{{- fail (printf "bundle.from: %s needs bundle.image.reference, the image that holds the bundle" .Values.bundle.from) -}}
{{- end -}}
{{- if and (eq .Values.bundle.from "none") (not .Values.settings.models) -}}
{{- fail "bundle.from: none needs settings.models, tables that name a bundle each" -}}
{{- end -}}
{{- if and .Values.settings.models (ne .Values.bundle.from "none") -}}
{{- fail "settings.models names a bundle for each model: set bundle.from: none, and mount them by guard.volumes and guard.volumeMounts" -}}
{{- end -}}
{{- if and .Values.modelServer.httpPort (not .Values.ports.rest) -}}
{{- fail "modelServer.httpPort needs ports.rest, where clients of the REST door call" -}}
{{- end -}}
{{- if and .Values.tls.clientCA (not .Values.tls.secret) -}}
{{- fail "tls.clientCA needs tls.secret, the Secret whose ca.crt it is" -}}
{{- end -}}
{{- $last := addf 2 (include "inference-guard.drain_s" . | float64) (include "inference-guard.inspect_timeout_s" . | float64) -}}
{{- if lt (float64 .Values.modelServer.pause_s) $last -}}
{{- fail (printf "modelServer.pause_s: %v is less than drain_s, inspect_timeout_s and 2 s together, %v; the model server would stop before what was let in last is answered" .Values.modelServer.pause_s $last) -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.kind "keda") (not .Values.autoscaling.prometheus) -}}
{{- fail "autoscaling.kind: keda needs autoscaling.prometheus, such as http://prometheus.monitoring:9090" -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.kind "keda") (not .Values.autoscaling.queueRows) -}}
{{- fail "autoscaling.kind: keda needs autoscaling.queueRows, the rows that may wait in a pod on average" -}}
{{- end -}}
{{- $used := dict -}}
{{- range $name, $port := dict "ports.inference" .Values.ports.inference "ports.metrics" .Values.ports.metrics "ports.rest" .Values.ports.rest "modelServer.grpcPort" .Values.modelServer.grpcPort "modelServer.httpPort" .Values.modelServer.httpPort -}}
{{- if $port -}}
{{- $key := toString $port -}}
{{- if hasKey $used $key -}}
{{- fail (printf "%s and %s are both %s; the containers of a pod share its ports" (get $used $key) $name $key) -}}
{{- end -}}
{{- $_ := set $used $key $name -}}
{{- end -}}
{{- end -}}
{{- end -}}
