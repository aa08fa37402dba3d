{{/* The one name of everything: two installations would fight over the same nodes, and clients find agents by it. */}}
{{- define "netpol.labels" -}}
{{ include "netpol.selector" . }}
app.kubernetes.io/part-of: netpol
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "netpol.selector" -}}
app.kubernetes.io/name: netpol
{{- end }}

{{- define "netpol.uninstallLabels" -}}
app.kubernetes.io/name: netpol-uninstall
app.kubernetes.io/part-of: netpol
{{- end }}

{{- define "netpol.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* The port at the end of ADDRESS:PORT. */}}
{{- define "netpol.port" -}}
{{ regexFind "[0-9]+$" . }}
{{- end }}

{{/* Where the node's directories are in the container. Not below /sys: the container runtimes' AppArmor profile forbids
     writing there. */}}
{{- define "netpol.inside" -}}
/host{{ . }}
{{- end }}

{{- define "netpol.securityContext" -}}
{{- $add := list "BPF" "NET_ADMIN" "PERFMON" -}}
{{- if .Values.oldKernels }}{{ $add = append $add "SYS_RESOURCE" }}{{ end -}}
{{- $needed := dict
  "privileged" false
  "allowPrivilegeEscalation" false
  "readOnlyRootFilesystem" true
  "runAsUser" 0
  "capabilities" (dict "drop" (list "ALL") "add" $add)
-}}
{{- toYaml (mergeOverwrite $needed (deepCopy .Values.securityContext)) -}}
{{- end }}

{{/* Flags that are off or have no value are left to the agent's own defaults. */}}
{{- define "netpol.args" -}}
{{- $v := .Values -}}
{{- $args := list
  "run"
  (printf "--bpffs=%s" (include "netpol.inside" $v.bpffs))
  (printf "--socket=%s/netpol.sock" $v.runDir)
  (printf "--state-dir=%s/attachments" $v.runDir)
  (printf "--health-address=%s" $v.health.address)
-}}
{{- if $v.cni.install -}}
{{- $args = concat $args (list
  (printf "--cni-conf-dir=%s" (include "netpol.inside" $v.cni.confDir))
  (printf "--cni-bin-dir=%s" (include "netpol.inside" $v.cni.binDir))
  (printf "--agent-absent=%s" $v.cni.agentAbsent)
) -}}
{{- end -}}
{{- $args = append $args (printf "--cni-cache=%s" (include "netpol.inside" $v.cni.cacheDir)) -}}
{{- if $v.serviceCIDRs }}{{ $args = append $args (printf "--service-cidr=%s" (join "," $v.serviceCIDRs)) }}{{ end -}}
{{- $args = concat $args (list
  (printf "--mark-mask=%s" $v.markMask)
  (printf "--max-pods=%d" (int $v.maxPods))
  (printf "--pod-interfaces=%s" $v.podInterfaces)
  (printf "--attach=%s" $v.attach)
  (printf "--pending-pods=%s" $v.pendingPods)
  (printf "--on-apply-failure=%s" $v.onApplyFailure)
) -}}
{{- if $v.strictTCP }}{{ $args = append $args "--strict-tcp" }}{{ end -}}
{{- if $v.enforceOwnNode }}{{ $args = append $args "--enforce-own-node" }}{{ end -}}
{{- if $v.allowAnySource }}{{ $args = append $args "--allow-any-source" }}{{ end -}}
{{- if ne $v.flows "drops" }}{{ $args = append $args (printf "--flows=%s" $v.flows) }}{{ end -}}
{{- if ne $v.runDir "/run/netpol" }}{{ $args = append $args (printf "--hubble-socket=%s/hubble.sock" $v.runDir) }}{{ end -}}
{{- if $v.hubble.enabled -}}
{{- $args = append $args (printf "--hubble-address=%s" $v.hubble.address) -}}
{{- if $v.hubble.tls.enabled -}}
{{- $args = concat $args (list
  "--hubble-tls-cert=/etc/netpol/hubble/tls.crt"
  "--hubble-tls-key=/etc/netpol/hubble/tls.key"
  "--hubble-tls-client-ca=/etc/netpol/hubble/ca.crt"
) -}}
{{- end -}}
{{- end -}}
{{- if $v.metrics.enabled }}{{ $args = append $args (printf "--metrics-address=%s" $v.metrics.address) }}{{ end -}}
{{- toYaml (concat $args $v.extraArgs) -}}
{{- end }}

{{/* What contradicts itself is refused before anything is sent. */}}
{{- define "netpol.check" -}}
{{- $v := .Values -}}
{{- if and $v.hubble.enabled $v.hubble.tls.enabled (not $v.hubble.tls.secretName) -}}
{{- fail "hubble.enabled serves flows on the node's address: name a Secret with tls.crt, tls.key and ca.crt in hubble.tls.secretName (or set hubble.tls.enabled=false to serve them to everybody)" -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled (not $v.metrics.enabled) -}}
{{- fail "serviceMonitor.enabled has nothing to scrape: set metrics.enabled=true too" -}}
{{- end -}}
{{- if and (not $v.serviceAccount.create) (not $v.serviceAccount.name) -}}
{{- fail "serviceAccount.create=false needs the name of one that exists in serviceAccount.name" -}}
{{- end -}}
{{- if ne (empty $v.k8sServiceHost) (empty $v.k8sServicePort) -}}
{{- fail "k8sServiceHost and k8sServicePort go together: give both or none" -}}
{{- end -}}
{{- end }}
