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
{{- include "inference-guard.serverChecks" . -}}
{{- include "inference-guard.variableChecks" (dict "owned" $owned "Values" .Values) -}}
{{- include "inference-guard.needChecks" . -}}
{{- include "inference-guard.egressChecks" . -}}
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

{{/* The model server's own arguments and variables against the values that the guard and the drain are made from. */}}
{{- define "inference-guard.serverChecks" -}}
{{- $server := .Values.modelServer -}}
{{- $words := include "inference-guard.serverWords" . -}}
{{- $flags := dict "--grpc-port" "grpcPort" "--http-port" "httpPort" "--rest_port" "httpPort" -}}
{{- if contains "--grpc_bind_address" $words -}}{{- $_ := set $flags "--port" "grpcPort" -}}{{- end -}}
{{- range $flag, $value := $flags -}}
{{- $found := regexFind (printf "(^| )%s[= ][0-9]+" $flag) $words | regexFind "[0-9]+$" -}}
{{- if and $found (get $server $value) (ne $found (toString (get $server $value))) -}}
{{- fail (printf "modelServer.%s: %v, and modelServer.args say %s=%s; the guard would ask where nothing listens: set both to one port" $value (get $server $value) $flag $found) -}}
{{- end -}}
{{- end -}}
{{- range $server.env -}}
{{- $value := get (dict "MLSERVER_GRPC_PORT" "grpcPort" "MLSERVER_HTTP_PORT" "httpPort") .name -}}
{{- if and $value .value (get $server $value) (ne (toString .value) (toString (get $server $value))) -}}
{{- fail (printf "modelServer.%s: %v, and modelServer.env says %s=%v; the guard would ask where nothing listens: set both to one port" $value (get $server $value) .name .value) -}}
{{- end -}}
{{- end -}}
{{- $exit := regexFind "--exit-timeout-secs[= ][0-9]+" $words | regexFind "[0-9]+$" -}}
{{- if and (not $exit) (contains "tritonserver" $words) -}}{{- $exit = "30" -}}{{- end -}}
{{- if and $exit (gt (float64 $exit) (float64 $server.exit_s)) -}}
{{- fail (printf "modelServer.exit_s: %v, and the model server takes up to %s s to end (--exit-timeout-secs, 30 unless given); it would be killed: set both to one time" $server.exit_s $exit) -}}
{{- end -}}
{{- end -}}

{{/* Variables of guard.env that would never count, or would beat what another value says. */}}
{{- define "inference-guard.variableChecks" -}}
{{- $seen := dict -}}
{{- range .Values.guard.env -}}
{{- $setting := lower (trimPrefix "GUARD_" .name) -}}
{{- if hasKey $seen .name -}}
{{- fail (printf "guard.env has %s twice; keep one" .name) -}}
{{- end -}}
{{- $_ := set $seen .name true -}}
{{- if hasPrefix "GUARD_" .name -}}
{{- if hasKey $.owned $setting -}}
{{- fail (printf "guard.env: %s: the chart sets it; use the value %s" .name (get $.owned $setting)) -}}
{{- end -}}
{{- if or (hasKey $.Values.settings $setting) (eq $setting "threads") -}}
{{- fail (printf "guard.env: %s would beat settings.%s; set it there" .name $setting) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Settings that need a value of the chart, and values that Kubernetes would refuse. */}}
{{- define "inference-guard.needChecks" -}}
{{- $settings := .Values.settings -}}
{{- $resources := .Values.guard.resources -}}
{{- $cpu := get (get $resources "requests" | default dict) "cpu" | default (get (get $resources "limits" | default dict) "cpu") -}}
{{- if and (not (get $settings "threads")) (has (toString $cpu) (list "" "0" "<nil>")) -}}
{{- fail "guard.resources.requests.cpu is not set, and the guard's threads follow it; set it, or settings.threads" -}}
{{- end -}}
{{- if and (get $settings "require_signature") (not .Values.bundle.trustedKeys.configMap) -}}
{{- fail "settings.require_signature needs bundle.trustedKeys.configMap, the public keys to trust" -}}
{{- end -}}
{{- if and (get $settings "sample_share") (not .Values.audit.enabled) -}}
{{- fail "settings.sample_share needs audit.enabled, the volume that holds the sample" -}}
{{- end -}}
{{- if and (get $settings "audit_inputs") (not .Values.audit.enabled) (not (get $settings "events_sink")) -}}
{{- fail "settings.audit_inputs needs audit.enabled, or settings.events_sink" -}}
{{- end -}}
{{- if and .Values.audit.enabled (not .Values.audit.claim) -}}
{{- $logs := 1 -}}
{{- if get $settings "sample_share" -}}{{- $logs = add 1 (max 1 (len (get $settings "models" | default dict))) -}}{{- end -}}
{{- $wanted := mulf 1.1 $logs (get $settings "audit_max_bytes" | default 268435456) -}}
{{- $room := include "inference-guard.bytes" .Values.audit.sizeLimit -}}
{{- if and $room (gt $wanted (float64 $room)) -}}
{{- fail (printf "audit.sizeLimit: %s is less than the %.0f bytes that audit_max_bytes lets log and samples take, and a tenth; the pod would be evicted: set it to %.0fMi, or lower settings.audit_max_bytes" .Values.audit.sizeLimit $wanted (ceil (divf $wanted 1048576))) -}}
{{- end -}}
{{- end -}}
{{- if and (ne .Values.autoscaling.kind "none") (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas: %v is more than autoscaling.maxReplicas: %v" .Values.autoscaling.minReplicas .Values.autoscaling.maxReplicas) -}}
{{- end -}}
{{- if and .Values.service.headless (ne .Values.service.type "ClusterIP") -}}
{{- fail (printf "service.type: %s has an address, and service.headless none; set one of the two" .Values.service.type) -}}
{{- end -}}
{{- end -}}

{{/* What the guard sends out of the pod, and a policy that lets nothing out. */}}
{{- define "inference-guard.egressChecks" -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) -}}
{{- $out := list -}}
{{- if get .Values.settings "events_sink" -}}{{- $out = append $out "settings.events_sink" -}}{{- end -}}
{{- range .Values.guard.env -}}
{{- if regexMatch "^OTEL_EXPORTER_OTLP(_[A-Z]+)?_ENDPOINT$" .name -}}{{- $out = append $out (printf "guard.env %s" .name) -}}{{- end -}}
{{- end -}}
{{- if eq (toString (get .Values.podLabels "sidecar.istio.io/inject")) "true" -}}{{- $out = append $out "the mesh's proxy (podLabels)" -}}{{- end -}}
{{- if $out -}}
{{- fail (printf "networkPolicy.egress is empty, so nothing leaves the pod, and %s would never be reached; add a rule for it and one for DNS" (join ", " $out)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
