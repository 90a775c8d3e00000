{{/* What pods have in common: security, Redis, settings as variables, quantities. */}}

{{- define "ghostcacher.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "ghostcacher.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/*
What each pod's specification begins with. enableServiceLinks: the variables that Kubernetes makes of Services' names would
be taken for settings, and refused (GC_...), or for vLLM's (VLLM_PORT). podBeginWithToken: of one that asks the Kubernetes API.
*/}}
{{- define "ghostcacher.podBegin" -}}
automountServiceAccountToken: false
{{ include "ghostcacher.podLinksAndPulls" . }}
{{- end }}

{{- define "ghostcacher.podBeginWithToken" -}}
automountServiceAccountToken: true
{{ include "ghostcacher.podLinksAndPulls" . }}
{{- end }}

{{- define "ghostcacher.podLinksAndPulls" -}}
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* A variable from the Secret: (dict "root" $ "name" "GC_INDEX_KEY" "key" "index-key") */}}
{{- define "ghostcacher.secretVariable" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef: {name: {{ include "ghostcacher.secretName" .root }}, key: {{ .key }}}
{{- end }}

{{/* Who uses Redis, as "true" or nothing: routers unless their settings say no, engines always. */}}
{{- define "ghostcacher.routersUseRedis" -}}
{{- include "ghostcacher.usesRedis" .Values.router.settings -}}
{{- end }}

{{/* Whether a router or a picker with these settings uses Redis, as "true" or nothing. */}}
{{- define "ghostcacher.usesRedis" -}}
{{- if not (has (dig "redis" true . | toString | lower) (list "false" "0")) }}true{{ end -}}
{{- end }}

{{/* Whether a Redis is run here: where somebody uses one, and there is none of yours. */}}
{{- define "ghostcacher.runsRedis" -}}
{{- $pickersUseIt := and .Values.epp.enabled (include "ghostcacher.usesRedis" .Values.epp.settings) -}}
{{- if and (not .Values.redis.url) (or .Values.engines (include "ghostcacher.routersUseRedis" .) $pickersUseIt) }}true{{ end -}}
{{- end }}

{{/* GC_REDIS_URL and what it is made of: (dict "root" $ "program" "worker"). The password comes before the URL. */}}
{{- define "ghostcacher.redisVariables" -}}
{{- $redis := .root.Values.redis -}}
{{- $user := get $redis.users .program -}}
{{- $url := $redis.url -}}
{{- if not $url -}}
{{- $url = printf "%s://%s-redis:6379/0" (ternary "rediss" "redis" $redis.tls.enabled) (include "ghostcacher.fullname" .root) -}}
{{- end -}}
{{- if contains "@" $url }}{{ fail "redis.url: expected a URL without user and password (secrets, redis.users), got one with @" }}{{ end -}}
{{- if $redis.tls.secret -}}
{{- $url = printf "%s%sssl_ca_certs=/etc/ghostcacher/redis-tls/ca.crt" $url (ternary "&" "?" (contains "?" $url)) -}}
{{- end -}}
{{- if $user -}}
{{ include "ghostcacher.secretVariable" (dict "root" .root "name" "REDIS_PASSWORD" "key" (printf "redis-%s-password" .program)) }}
- name: GC_REDIS_URL
  value: {{ $url | replace "://" (printf "://%s:$(REDIS_PASSWORD)@" $user) | quote }}
{{- else -}}
- name: GC_REDIS_URL
  value: {{ $url | quote }}
{{- end }}
{{- end }}

{{- define "ghostcacher.redisTlsMount" -}}
{{- if .Values.redis.tls.secret }}
- {name: redis-tls, mountPath: /etc/ghostcacher/redis-tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "ghostcacher.redisTlsVolume" -}}
{{- with .Values.redis.tls.secret }}
- name: redis-tls
  secret:
    secretName: {{ . }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}

{{/* Settings as variables: (dict "prefix" "GC_ROUTER_" "settings" ...). Numbers as JSON: never 1.6e+07. */}}
{{- define "ghostcacher.settingVariables" -}}
{{- $prefix := .prefix -}}
{{- range $name, $value := .settings }}
- name: {{ $prefix }}{{ upper $name }}
  value: {{ if kindIs "slice" $value }}{{ join "," $value | quote }}{{ else if kindIs "string" $value }}{{ $value | quote }}{{ else }}{{ toJson $value | quote }}{{ end }}
{{- end }}
{{- end }}

{{/* A quantity in thousandths of a CPU, or in MiB. */}}
{{- define "ghostcacher.milliCpu" -}}
{{- $text := toString . -}}
{{- if hasSuffix "m" $text }}{{ trimSuffix "m" $text | int64 }}{{ else }}{{ mulf (float64 $text) 1000 | int64 }}{{ end -}}
{{- end }}

{{- define "ghostcacher.mebibytes" -}}
{{- $text := toString . -}}
{{- if hasSuffix "Gi" $text }}{{ mulf (trimSuffix "Gi" $text | float64) 1024 | int64 }}
{{- else if hasSuffix "Mi" $text }}{{ trimSuffix "Mi" $text | int64 }}
{{- else }}{{ fail (printf "resources: expected memory in Mi or Gi, got %q" $text) }}{{ end -}}
{{- end }}
