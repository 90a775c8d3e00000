{{/* Names, labels and images. */}}

{{- define "ghostcacher.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* Of 40 characters at most: Deployments of engines add their own, and pods' names are workers' names. */}}
{{- define "ghostcacher.fullname" -}}
{{- $name := include "ghostcacher.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* What selects all pods of the fleet. part-of is what network policies go by, and sidecars may have it, too. */}}
{{- define "ghostcacher.selector" -}}
app.kubernetes.io/name: {{ include "ghostcacher.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ghostcacher.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "ghostcacher.selector" . }}
app.kubernetes.io/part-of: {{ include "ghostcacher.fullname" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "ghostcacher.podLabels" -}}
{{ include "ghostcacher.selector" . }}
app.kubernetes.io/part-of: {{ include "ghostcacher.fullname" . }}
{{- end }}

{{/* (dict "root" $ "name" "ghostcacher-router") */}}
{{- define "ghostcacher.image" -}}
{{- $image := .root.Values.image -}}
{{- with $image.registry }}{{ . | trimSuffix "/" }}/{{ end }}{{ .name }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end }}

{{- define "ghostcacher.secretName" -}}
{{- default (include "ghostcacher.fullname" .) .Values.secrets.existing -}}
{{- end }}

{{/* Where all addresses of a pod are listened on, and a pod's own address as part of a URL. */}}
{{- define "ghostcacher.anyAddress" -}}
{{- if eq .Values.ipFamily "IPv6" }}::{{ else }}0.0.0.0{{ end -}}
{{- end }}

{{- define "ghostcacher.anyAddressInUrl" -}}
{{- if eq .Values.ipFamily "IPv6" }}[::]{{ else }}0.0.0.0{{ end -}}
{{- end }}

{{- define "ghostcacher.podAddressInUrl" -}}
{{- if eq .Values.ipFamily "IPv6" }}[$(POD_IP)]{{ else }}$(POD_IP){{ end -}}
{{- end }}

{{/* The pods of the fleet, here and in namespaces of yours, as peers of a NetworkPolicy. */}}
{{- define "ghostcacher.members" -}}
{{- $fleet := dict "app.kubernetes.io/part-of" (include "ghostcacher.fullname" .) }}
{{- $members := list (dict "podSelector" (dict "matchLabels" $fleet)) }}
{{- range .Values.networkPolicy.namespaces }}
{{- $namespace := dict "matchLabels" (dict "kubernetes.io/metadata.name" .) }}
{{- $members = append $members (dict "namespaceSelector" $namespace "podSelector" (dict "matchLabels" $fleet)) }}
{{- end }}
{{- toYaml $members }}
{{- end }}

{{/* The InferencePool that pickers read, by its name; nothing where they pick every worker that Redis names. */}}
{{- define "ghostcacher.pool" -}}
{{- if .Values.epp.pool -}}
{{- .Values.epp.pool -}}
{{- else if .Values.gateway.inferencePool.enabled -}}
{{- include "ghostcacher.fullname" . -}}
{{- end -}}
{{- end }}
