{{/* What routers and pickers may connect to. A NetworkPolicy knows addresses and ports, and no names. */}}

{{/* The ports that URLs name, as a NetworkPolicy has them: (dict "urls" (list "redis://host:1") "default" (list 6379)) */}}
{{- define "ghostcacher.portsOf" -}}
{{- $ports := list -}}
{{- range $url := .urls -}}
{{- range regexFind "://[^/?]*" $url | splitList "," -}}
{{- $port := regexFind ":[0-9]+$" . -}}
{{- $ports = concat $ports (ternary (list (trimPrefix ":" $port | int)) $.default (ne $port "")) -}}
{{- end -}}
{{- end -}}
{{- range $ports | uniq }}
- {port: {{ . }}}
{{- end -}}
{{- end }}

{{/* A setting that is a list, or a text with commas, as JSON. */}}
{{- define "ghostcacher.listed" -}}
{{- if kindIs "string" . }}{{ splitList "," . | toJson }}{{ else }}{{ default list . | toJson }}{{ end -}}
{{- end }}

{{/* The rules of one policy: (dict "root" $ "settings" .Values.router.settings) */}}
{{- define "ghostcacher.egress" -}}
{{- $settings := .settings -}}
{{- $root := .root -}}
# Name servers, wherever they are: the cache of a node has an address of the node.
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- $redis := $root.Values.redis.url }}
{{- if not (include "ghostcacher.usesRedis" $settings) }}
{{- else if $redis }}
# Redis. Sentinels name servers, which are where Redis is by default.
- ports:
    {{- $default := ternary (list 26379) (list 6379) (contains "+sentinel:" $redis) }}
    {{- include "ghostcacher.portsOf" (dict "urls" (list $redis) "default" $default) | nindent 4 }}
    {{- if contains "+sentinel:" $redis }}
    - {port: 6379}
    {{- end }}
{{- else }}
- to:
    - podSelector:
        matchLabels:
          {{- include "ghostcacher.selector" $root | nindent 10 }}
          app.kubernetes.io/component: redis
  ports:
    - {port: 6379}
{{- end }}
{{- if $root.Values.engines }}
- to:
    - podSelector:
        matchLabels:
          {{- include "ghostcacher.selector" $root | nindent 10 }}
          app.kubernetes.io/component: engine
  ports:
    - {port: {{ $root.Values.engineDefaults.port }}}
{{- end }}
{{- with include "ghostcacher.listed" $settings.workers | fromJsonArray }}
# Workers that are given by URL.
- ports:
    {{- include "ghostcacher.portsOf" (dict "urls" . "default" (list 80 443)) | trim | nindent 4 }}
{{- end }}
{{- with include "ghostcacher.listed" $settings.upstreams | fromJsonArray }}
# Hosted providers: their addresses change, and are none of a private network.
- to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except: [10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16]
    - ipBlock:
        cidr: ::/0
        except: ["::1/128", fc00::/7, fe80::/10]
  ports:
    {{- include "ghostcacher.portsOf" (dict "urls" . "default" (list 443)) | trim | nindent 4 }}
{{- end }}
{{- with $root.Values.networkPolicy.egress.extra }}
{{ toYaml . }}
{{- end }}
{{- end }}
