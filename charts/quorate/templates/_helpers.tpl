{{- define "quorate.name" -}}
quorate-operator
{{- end }}

{{- define "quorate.labels" -}}
app.kubernetes.io/name: quorate-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "quorate.selector" -}}
app.kubernetes.io/name: quorate-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Cluster-wide names carry the release's namespace, so that two namespaced installations do not meet. */ -}}
{{- define "quorate.clusterName" -}}
quorate-operator-{{ .Release.Namespace }}
{{- end }}

{{- /* Certificates, each by its name. */ -}}
{{- define "quorate.secretRules" -}}
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, update]
{{- end }}

{{- /* What the operator may do to clusters and what they own. Every verb is one it uses. */ -}}
{{- define "quorate.rules" -}}
- apiGroups: [quorate.dev]
  resources: [consistentclusters]
  verbs: [get, list, watch, patch]
- apiGroups: [quorate.dev]
  resources: [consistentclusters/status]
  verbs: [patch]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, update, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch]
{{- if and .Values.tlsSecrets.enabled (not .Values.tlsSecrets.namespaces) }}
{{ include "quorate.secretRules" . }}
{{- end }}
{{- if .Values.certManager }}
- apiGroups: [cert-manager.io]
  resources: [certificates]
  verbs: [get, create, patch]
{{- end }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}
