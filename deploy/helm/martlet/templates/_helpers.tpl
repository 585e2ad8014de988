{{/* The name of the objects: the release's, unless told otherwise. Short enough that what is appended fits. */}}
{{- define "martlet.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "martlet.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "martlet.labels" -}}
app.kubernetes.io/part-of: martlet
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{ include "martlet.selector" . }}
{{- end -}}

{{/* What never changes: a Deployment's selector cannot. */}}
{{- define "martlet.selector" -}}
app.kubernetes.io/name: martlet-controller
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "martlet.account.controller" -}}
{{ include "martlet.fullname" . }}-controller
{{- end -}}

{{/* Router and load balancer are containers of one pod: they share its ServiceAccount. */}}
{{- define "martlet.account.pods" -}}
{{ .Values.loadBalancer.serviceAccount.name | default (printf "%s-load-balancer" (include "martlet.fullname" .)) }}
{{- end -}}

{{- define "martlet.podTemplate" -}}
{{ include "martlet.fullname" . }}-pod-template
{{- end -}}
