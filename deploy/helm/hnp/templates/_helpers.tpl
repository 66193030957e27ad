{{- define "hnp.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains "agent" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-agent" (.Release.Name | trunc 46 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "hnp.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "hnp.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* The Service in front of the gateway, as pods were told of the vendor's. */}}
{{- define "hnp.gatewayName" -}}
{{- if .Values.gateway.service.name -}}
{{- .Values.gateway.service.name -}}
{{- else if contains "agent-proxy" .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-agent-proxy" (.Release.Name | trunc 51 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "hnp.selector" -}}
app.kubernetes.io/name: hnp-agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "hnp.labels" -}}
{{ include "hnp.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Lists that the vendor's values and ours both have: {"env": [...], "volumes": [...], "volumeMounts": [...]} */}}
{{- define "hnp.both" -}}
{{- $vendor := index .Values "agent-proxy" -}}
{{- $both := dict -}}
{{- range list "env" "volumes" "volumeMounts" -}}
{{- $_ := set $both . (concat (index $vendor . | default list) (index $.Values . | default list)) -}}
{{- end -}}
{{- toJson $both -}}
{{- end -}}

{{/* The variables that are written as they are: {"NAME": "value"}. Those that come from elsewhere cannot be read here. */}}
{{- define "hnp.variables" -}}
{{- $found := dict -}}
{{- range (include "hnp.both" . | fromJson).env -}}
{{- if hasKey . "valueFrom" -}}
{{- if has .name (list "CLIENT_CERT_PATH" "CLIENT_KEY_PATH" "PROXY_CLIENT_CERT_PATH" "PROXY_CLIENT_KEY_PATH" "HTTPS_PROXY" "https_proxy" "NO_PROXY" "no_proxy") -}}
{{- fail (printf "env: %s: comes from elsewhere (valueFrom), and the agent's configuration is made of its value; allowed: `value`, or all of the configuration under `config`" .name) -}}
{{- end -}}
{{- else -}}
{{- $_ := set $found .name (.value | default "" | toString) -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* Certificate and key of whichever pair of variables is set: {"certificate": ..., "key": ...}, else nothing. */}}
{{- define "hnp.pair" -}}
{{- $set := include "hnp.variables" . | fromJson -}}
{{- $pair := dict -}}
{{- range list "CLIENT" "PROXY_CLIENT" "DELEGATE_CLIENT_CERTIFICATE" -}}
{{- $certificate := ternary "DELEGATE_CLIENT_CERTIFICATE_PATH" (printf "%s_CERT_PATH" .) (hasPrefix "DELEGATE" .) -}}
{{- $key := printf "%s_KEY_PATH" . -}}
{{- if and (get $set $certificate) (get $set $key) -}}
{{- $found := dict "certificate" (get $set $certificate) "key" (get $set $key) -}}
{{- if and $pair (ne (toJson $pair) (toJson $found)) -}}
{{- fail (printf "env: %s and %s say something else than another pair of variables; allowed: one pair, or the same" $certificate $key) -}}
{{- end -}}
{{- $pair = $found -}}
{{- else if or (get $set $certificate) (get $set $key) -}}
{{- fail (printf "env: of %s and %s one is missing; allowed: both" $certificate $key) -}}
{{- end -}}
{{- end -}}
{{- if $pair -}}{{- toJson $pair -}}{{- end -}}
{{- end -}}

{{/* Whether there is a gateway: the vendor's tag decides where it is written. */}}
{{- define "hnp.gatewayWanted" -}}
{{- if hasKey .Values.tags "agentProxy" -}}
{{- if .Values.tags.agentProxy -}}yes{{- end -}}
{{- else if .Values.gateway.enabled -}}yes{{- end -}}
{{- end -}}

{{/* The agent's configuration: as it is given, or made of the simple values. All other templates go by this. */}}
{{- define "hnp.config" -}}
{{- if .Values.config -}}
{{- if or .Values.serverAddress .Values.destinations .Values.overrides .Values.runtimeSocket -}}
{{- fail "config: stands for all of the configuration, and serverAddress, destinations, overrides or runtimeSocket are written beside it; allowed: one or the other" -}}
{{- end -}}
{{- toYaml .Values.config -}}
{{- else -}}
{{- $url := .Values.serverAddress | default .Values.global.serverAddress -}}
{{- if not $url -}}
{{- fail "serverAddress: is missing; allowed: the manager's URL, https://HOST[:PORT][/BASE], also as global.serverAddress, or all of the configuration under `config`" -}}
{{- end -}}
{{- if not (regexMatch "^https://[^/@?#]+(/[^?#]*)?$" $url) -}}
{{- fail (printf "serverAddress: %q is not the manager's URL; allowed: https://HOST[:PORT][/BASE]" $url) -}}
{{- end -}}
{{- $authority := regexReplaceAll "^https://([^/]+).*$" $url "${1}" -}}
{{- $host := regexReplaceAll ":[0-9]+$" $authority "" -}}
{{- $port := ternary "443" (trimPrefix (printf "%s:" $host) $authority) (eq $host $authority) -}}
{{- $route := dict "name" "manager" "upstream" $url "mode" .Values.mode "enforcement" .Values.enforcement -}}
{{- $_ := set $route "destinations" (.Values.destinations | default (list (printf "%s:80" $host) (printf "%s:%s" $host $port) | uniq)) -}}
{{- with .Values.overrides }}{{ $_ := set $route "overrides" . }}{{ end -}}
{{- $config := dict "routes" (list $route) -}}
{{- if eq .Values.mode "reverse-proxy" -}}
{{- $ours := dict "certificate" (printf "%s/%s" .Values.client.mountPath .Values.client.certificate) "key" (printf "%s/%s" .Values.client.mountPath .Values.client.key) -}}
{{- $pair := include "hnp.pair" . -}}
{{- $_ := set $config "identities" (dict "manager-client" (ternary ($pair | default "{}" | fromJson) $ours (ne $pair ""))) -}}
{{- $_ := set $route "identity" "manager-client" -}}
{{- if .Values.ca -}}
{{- $_ := set $config "trusts" (dict "manager" (dict "roots" "/etc/hnp/ca.crt")) -}}
{{- $_ := set $route "trust" "manager" -}}
{{- end -}}
{{- end -}}
{{- $set := include "hnp.variables" . | fromJson -}}
{{- with (get $set "HTTPS_PROXY" | default (get $set "https_proxy")) -}}
{{- $proxy := dict "url" (ternary . (printf "http://%s" .) (contains "://" .)) -}}
{{- with (get $set "NO_PROXY" | default (get $set "no_proxy")) -}}
{{- $rules := list -}}
{{- range splitList "," . }}{{ with trim . }}{{ $rules = append $rules . }}{{ end }}{{ end -}}
{{- $_ := set $proxy "no_proxy" $rules -}}
{{- end -}}
{{- $_ := set $config "upstream_proxies" (dict "environment" $proxy) -}}
{{- $_ := set $route "upstream_proxy" "environment" -}}
{{- end -}}
{{- if not .Values.capture.enabled -}}
{{- $_ := set $config "capture" (dict "mode" "off") -}}
{{- else -}}
{{- if .Values.capture.destroyOlderFlows -}}
{{- $_ := set $config "capture" (dict "destroy_older_flows" true) -}}
{{- end -}}
{{- with .Values.runtimeSocket }}{{ $_ := set $config "workloads" (dict "runtime" .) }}{{ end -}}
{{- $_ := set $config "kubernetes" (dict "startup_taint" (ternary .Values.startupTaint.key "off" .Values.startupTaint.enabled)) -}}
{{- end -}}
{{- if include "hnp.gatewayWanted" . -}}
{{- $port := int .Values.gateway.port -}}
{{- $gateway := dict "listen" (list (printf "0.0.0.0:%d" $port) (printf "[::]:%d" $port)) -}}
{{- $everybody := list "10.0.0.0/8" "172.16.0.0/12" "192.168.0.0/16" "100.64.0.0/10" "fc00::/7" -}}
{{- with (.Values.gateway.sources | default (ternary list $everybody .Values.capture.enabled)) -}}
{{- $_ := set $gateway "sources" . -}}
{{- end -}}
{{- $_ := set $config "gateway" $gateway -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}
{{- end -}}

{{/* Of `config`, what decides about the pod. {"capture": bool, ...}; see each line. */}}
{{- define "hnp.facts" -}}
{{- $config := include "hnp.config" . | fromYaml -}}
{{- $section := get $config "capture" | default dict -}}
{{- $capture := ternary (dict "mode" $section) $section (kindIs "string" $section) -}}
{{- $facts := dict -}}
{{- $_ := set $facts "capture" (not (has (get $capture "mode" | toString) (list "off" "false"))) -}}
{{- $_ := set $facts "olderFlows" (eq (get $capture "destroy_older_flows" | toString) "true") -}}
{{- $_ := set $facts "bpffs" (dir (get $capture "bpffs" | default "/sys/fs/bpf/hnp")) -}}
{{- $_ := set $facts "podLogs" (get $capture "pod_logs" | default "/var/log/pods") -}}
{{- /* Its folder where it has one of its own: a runtime that starts anew makes a new socket, which a mounted one is not. */ -}}
{{- $runtime := get (get $config "workloads" | default dict) "runtime" | toString -}}
{{- $shared := has (dir $runtime) (list "/run" "/var/run") -}}
{{- $_ := set $facts "runtime" (ternary (ternary $runtime (dir $runtime) $shared) "" (and (get $facts "capture") (hasPrefix "/" $runtime))) -}}
{{- $_ := set $facts "runtimeType" (ternary "Socket" "Directory" $shared) -}}
{{- $_ := set $facts "runDir" (get $config "run_dir" | default "/run/hnp") -}}
{{- $vips := list (get $capture "vips4" | default "169.254.77.0/24") (get $capture "vips6" | default "fd00:77::/64") -}}
{{- $_ := set $facts "vips" $vips -}}
{{- $_ := set $facts "capturePort" (get $capture "port" | default 15001 | int) -}}
{{- $selects := false -}}
{{- $system := false -}}
{{- range (get $config "routes" | default list) -}}
{{- if and (ne (get . "mode") "tunnel") (eq (get . "trust" | default "system") "system") }}{{ $system = true }}{{ end -}}
{{- range (get . "overrides" | default list) -}}
{{- if get . "selector" }}{{ $selects = true }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range $name, $trust := (get $config "trusts" | default dict) -}}
{{- if eq (get $trust "roots" | toString) "system" }}{{ $system = true }}{{ end -}}
{{- end -}}
{{- range $name, $proxy := (get $config "upstream_proxies" | default dict) -}}
{{- if and (hasPrefix "https:" (get $proxy "url")) (eq (get $proxy "trust" | default "system") "system") }}{{ $system = true }}{{ end -}}
{{- end -}}
{{- $_ := set $facts "systemRoots" (and $system (ne .Values.systemRoots "")) -}}
{{- $issues := false -}}
{{- range $name, $identity := (get $config "identities" | default dict) -}}
{{- if get $identity "issuer" }}{{ $issues = true }}{{ end -}}
{{- end -}}
{{- $gateway := get $config "gateway" -}}
{{- $_ := set $facts "gateway" (kindIs "map" $gateway) -}}
{{- $port := 7777 -}}
{{- if kindIs "map" $gateway -}}
{{- with (get $gateway "listen") }}{{ $port = first . | splitList ":" | last | int }}{{ end -}}
{{- end -}}
{{- $_ := set $facts "gatewayPort" $port -}}
{{- $_ := set $facts "pods" (and (get $facts "capture") (or $selects $issues (get $facts "gateway"))) -}}
{{- $cluster := get $config "kubernetes" | default dict -}}
{{- $_ := set $facts "taint" (and (get $facts "capture") (not (has (get $cluster "startup_taint" | toString) (list "off" "false")))) -}}
{{- $_ := set $facts "cleanUp" (and (get $facts "capture") .Values.uninstall.cleanUp) -}}
{{- $admin := get $config "admin" | default dict -}}
{{- $listen := ternary (toString $admin) (get (ternary dict $admin (kindIs "string" $admin)) "listen" | default "127.0.0.1:15090") (kindIs "string" $admin) -}}
{{- $_ := set $facts "admin" $listen -}}
{{- $drain := get (get $config "drain" | default dict) "deadline" | default "25s" -}}
{{- $number := regexFind "^[0-9]+" $drain | int -}}
{{- $unit := regexFind "[a-z]+$" $drain -}}
{{- $seconds := ternary (div (add $number 999) 1000) (mul $number (get (dict "ms" 1 "s" 1 "m" 60 "h" 3600) $unit | default 1)) (eq $unit "ms") -}}
{{- $_ := set $facts "grace" (add $seconds 10) -}}
{{- toJson $facts -}}
{{- end -}}

{{/*
How kubelet asks the agent: the one place that says it. The argument is a dict of `facts` and `what` (alive, ready). Over the agent's
own socket, so that no port needs to be open, and during an update whoever holds the socket answers.
*/}}
{{- define "hnp.probe" -}}
exec:
  command: [/hnp-agent, status, --run-dir, {{ .facts.runDir | quote }}, --probe, {{ .what }}]
timeoutSeconds: 5
{{- end -}}
