{{/* One engine: its values over the defaults, and what follows from them. */}}

{{/* The values as JSON: (dict "root" $ "engine" $given). Fails, naming the field, where they do not fit together. */}}
{{- define "ghostcacher.engine" -}}
{{- $engine := mergeOverwrite (deepCopy .root.Values.engineDefaults) (deepCopy .engine) -}}
{{- $where := printf "engines: %s" $engine.name -}}
{{- if not $engine.model }}{{ fail (printf "%s: expected a model, got none" $where) }}{{ end -}}
{{- if eq $engine.kind "sglang" -}}
{{- if ne (int $engine.dataParallel) 1 }}{{ fail (printf "%s: dataParallel: SGLang's data-parallel ranks do not share: expected 1, got %v" $where $engine.dataParallel) }}{{ end -}}
{{- if and (gt (float64 $engine.hostTierGib) 0.0) (gt (int $engine.tensorParallel) 1) }}{{ fail (printf "%s: hostTierGib: SGLang has no host tier with tensorParallel above 1: expected 0, got %v" $where $engine.hostTierGib) }}{{ end -}}
{{- if ne $engine.device "gpu" }}{{ fail (printf "%s: device: SGLang without a GPU is for tests: expected gpu, got %s" $where $engine.device) }}{{ end -}}
{{- if ne $engine.kvRole "kv_both" }}{{ fail (printf "%s: kvRole: SGLang has no roles: expected kv_both, got %s" $where $engine.kvRole) }}{{ end -}}
{{- if $engine.pdRole }}{{ fail (printf "%s: pdRole: SGLang hands nothing over: expected none, got %s" $where $engine.pdRole) }}{{ end -}}
{{- end -}}
{{- if and $engine.models.existingClaim $engine.models.hostPath }}{{ fail (printf "%s: models: expected existingClaim or hostPath, got both" $where) }}{{ end -}}
{{- $ports := .root.Values.nixl.tcpPorts -}}
{{- if gt (int $ports.first) (int $ports.last) }}{{ fail (printf "nixl.tcpPorts: expected the first port before the last, got %v and %v" $ports.first $ports.last) }}{{ end -}}
{{- $_ := set $engine "asRoot" (or $engine.rdma.enabled $engine.hostNamespaces $engine.sysPtrace) -}}
{{- $_ := set $engine "ranks" (mul (int $engine.tensorParallel) (int $engine.dataParallel)) -}}
{{- $_ := set $engine "fullname" (printf "%s-%s" (include "ghostcacher.fullname" .root) $engine.name) -}}
{{- $engine | toJson -}}
{{- end }}

{{- define "ghostcacher.engineImage" -}}
{{- $built := ternary "ghostcacher-sglang" (ternary "ghostcacher-vllm-cpu" "ghostcacher-vllm" (eq .engine.device "cpu")) (eq .engine.kind "sglang") -}}
{{ include "ghostcacher.image" (dict "root" .root "name" (default $built .engine.image)) }}
{{- end }}

{{- define "ghostcacher.engineCommand" -}}
{{- $engine := .engine -}}
{{- if eq $engine.kind "sglang" -}}
command: [python3, -m, sglang.launch_server]
args:
  - {{ printf "--model-path=%s" $engine.model | quote }}
  - --tp-size={{ $engine.tensorParallel }}
  - --enable-metrics
  - --enable-unified-cache-external-linker
  - --unified-cache-external-linker-backend=dynamic
  - --unified-cache-external-linker-config={"linker":"GhostCacherLinker","linker_module_path":"ghostcacher_connector.engines.sglang"}
{{- else -}}
command: [python3, -m, vllm.entrypoints.openai.api_server]
args:
  - {{ printf "--model=%s" $engine.model | quote }}
  - --tensor-parallel-size={{ $engine.tensorParallel }}
  {{- if gt (int $engine.dataParallel) 1 }}
  - --data-parallel-size={{ $engine.dataParallel }}
  {{- end }}
  - --shutdown-timeout={{ $engine.drainSeconds }}
  - --kv-transfer-config={{ include "ghostcacher.transferConfig" $engine }}
{{- end }}
  - "--host={{ include "ghostcacher.anyAddress" .root }}"
  - --port={{ $engine.port }}
  {{- with $engine.servedModelName }}
  - {{ printf "--served-model-name=%s" . | quote }}
  {{- end }}
  {{- range $engine.extraArgs }}
  - {{ . | quote }}
  {{- end }}
{{- end }}

{{/*
The connector as JSON: alone or, with a pdRole, beside vLLM's NixlConnector, which is asked first. What stands beside
kv_connector of MultiConnector is read there alone.
*/}}
{{- define "ghostcacher.transferConfig" -}}
{{- $ours := dict "kv_connector" "GhostCacherConnector" "kv_role" .kvRole -}}
{{- if .pdRole -}}
{{- $nixlRole := get (dict "prefill" "kv_producer" "decode" "kv_consumer") .pdRole -}}
{{- $children := list (dict "kv_connector" "NixlConnector" "kv_role" $nixlRole) $ours -}}
{{- $outer := dict "kv_connector" "MultiConnector" "kv_role" "kv_both" "kv_load_failure_policy" "recompute" -}}
{{- $ours = merge $outer (dict "kv_connector_extra_config" (dict "connectors" $children)) -}}
{{- end -}}
{{ $ours | toJson }}
{{- end }}

{{/* The worker's name is the pod's: no two live engines may have one, and no two pods of a namespace do. */}}
{{- define "ghostcacher.engineVariables" -}}
{{- $root := .root -}}
{{- $engine := .engine -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{ include "ghostcacher.redisVariables" (dict "root" $root "program" "worker") }}
{{ include "ghostcacher.secretVariable" (dict "root" $root "name" "GC_INDEX_KEY" "key" "index-key") }}
- name: GC_WORKER_ID
  value: $(POD_NAME)
- name: GC_HTTP_URL
  value: http://{{ include "ghostcacher.podAddressInUrl" $root }}:{{ $engine.port }}
{{- if $root.Values.relay.enabled }}
- name: GC_RELAY_LISTEN
  value: "{{ include "ghostcacher.podAddressInUrl" $root }}:{{ $root.Values.relay.port }}"
{{ include "ghostcacher.secretVariable" (dict "root" $root "name" "GC_RELAY_TOKEN" "key" "relay-token") }}
{{- end }}
{{- if gt (float64 $engine.hostTierGib) 0.0 }}
- name: GC_HOST_TIER_GIB
  value: {{ toJson $engine.hostTierGib | quote }}
{{- end }}
{{- include "ghostcacher.settingVariables" (dict "prefix" "GC_" "settings" $engine.settings) }}
- name: HOME
  value: /home/ghostcacher
- name: HF_HOME
  value: /models
{{- with $engine.huggingFaceToken.secret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: {{ $engine.huggingFaceToken.key }}}
{{- end }}
{{- if eq $engine.device "cpu" }}
- name: VLLM_CPU_KVCACHE_SPACE
  value: {{ $engine.cpuKvCacheGib | quote }}
{{- if eq (int $engine.tensorParallel) 1 }}
{{- /* No process for the rank alone: it and the scheduler wait for each other by spinning. */}}
- name: VLLM_ENABLE_V1_MULTIPROCESSING
  value: "0"
{{- end }}
{{- end }}
{{- if $engine.pdRole }}
- name: VLLM_NIXL_SIDE_CHANNEL_HOST
  value: $(POD_IP)
- name: VLLM_NIXL_SIDE_CHANNEL_PORT
  value: {{ $root.Values.nixl.sideChannelPort | quote }}
- name: UCX_TCP_PORT_RANGE
  value: "{{ $root.Values.nixl.tcpPorts.first }}-{{ $root.Values.nixl.tcpPorts.last }}"
{{- end }}
{{- with $engine.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
The engine's own, the relay's, and what lies in host memory: /dev/shm, the host tier and, on a CPU, the KV cache of each
copy. A capability that is added has no effect on a process that does not run as root.
*/}}
{{- define "ghostcacher.engineResources" -}}
{{- $engine := .engine -}}
{{- $relay := ternary .root.Values.relay.resources dict .root.Values.relay.enabled -}}
{{- $inHost := float64 $engine.hostTierGib -}}
{{- if eq $engine.device "cpu" }}{{ $inHost = addf $inHost (float64 $engine.cpuKvCacheGib) }}{{ end -}}
{{- $shm := mul (int $engine.shmGib) 1024 -}}
{{- $more := add (mulf $inHost (float64 $engine.dataParallel) 1024.0 | ceil | int64) $shm -}}
{{- range $kind := list "requests" "limits" }}
{{- $own := default dict (get $engine.resources $kind) }}
{{- $relayOwn := default dict (get $relay $kind) }}
{{ $kind }}:
  {{- with $own.cpu }}
  cpu: {{ add (include "ghostcacher.milliCpu" .) (include "ghostcacher.milliCpu" (default "0" $relayOwn.cpu)) }}m
  {{- end }}
  {{- with $own.memory }}
  memory: {{ add (include "ghostcacher.mebibytes" .) (include "ghostcacher.mebibytes" (default "0Mi" $relayOwn.memory)) $more }}Mi
  {{- end }}
  {{- if eq $engine.device "gpu" }}
  {{ $engine.gpu.resource }}: {{ $engine.ranks | quote }}
  {{- end }}
  {{- if $engine.rdma.enabled }}
  {{ $engine.rdma.resource }}: {{ $engine.rdma.count | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "ghostcacher.engineCapabilities" -}}
{{- $added := list -}}
{{- if .rdma.enabled }}{{ $added = append $added "IPC_LOCK" }}{{ end -}}
{{- if or .hostNamespaces .sysPtrace }}{{ $added = append $added "SYS_PTRACE" }}{{ end -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  {{- with $added }}
  add: {{ toJson . }}
  {{- end }}
{{- end }}
