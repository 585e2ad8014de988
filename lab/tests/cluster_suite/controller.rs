//! The controller on the real server.

use anyhow::{Context as _, Result, ensure};
use martlet_lab::cluster::Cluster;
use martlet_lab::cluster::objects::wait_for;
use serde_json::{Value, json};

use super::play::{self, CLASS, LIMIT, Roles, Tenant};

pub fn the_seed_becomes_a_deployment_slices_and_status(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "seed", Roles::All).await?;
        tenant.seed().await?;
        let controller = tenant.controller("one")?;
        let deployment = tenant.expect("Deployment", "sllbr-sllb-a", "it is there", |_| true).await?;
        let pod = &deployment["spec"]["template"];
        ensure!(
            pod["spec"]["containers"][0]["name"] == "router" && pod["spec"]["containers"][1]["name"] == "lb",
            "{pod}"
        );
        let networks = pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"].as_str().unwrap_or_default();
        ensure!(networks.contains("vlan-100") && networks.contains("macvlan-nad-1"), "{networks}");
        tenant.expect("PodDisruptionBudget", "sllbr-sllb-a", "it is there", |_| true).await?;
        tenant.pod("target-1", "169.111.100.11", true).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        let gateway =
            tenant.expect("Gateway", "sllb-a", "its address", |g| !g["status"]["addresses"].is_null()).await?;
        ensure!(gateway["status"]["addresses"] == json!([{"type": "IPAddress", "value": "20.0.0.1"}]), "{gateway}");
        tenant.condition("Gateway", "sllb-a", "Accepted", "True", "Accepted").await?;
        tenant.condition("Gateway", "sllb-a", "Programmed", "False", "Pending").await?;
        tenant.condition("Gateway", "sllb-a", "Ready", "False", "NotReady").await?;
        tenant.condition("L34Route", "vip-a", "Accepted", "True", "Accepted").await?;
        tenant.condition("L34Route", "vip-a", "ResolvedRefs", "True", "ResolvedRefs").await?;
        tenant.expect_quiet().await?;
        // A restart finds everything as it should be, and writes nothing.
        let before = tenant.versions().await?;
        controller.stop().await?;
        let controller = tenant.controller("two")?;
        tenant
            .expect("Lease", "martlet-controller", "the new one leads", |lease| {
                lease["spec"]["holderIdentity"] == "two"
            })
            .await?;
        tenant.expect_quiet().await?;
        ensure!(tenant.versions().await? == before, "a restart writes nothing");
        controller.stop().await
    })
}

pub fn endpoints_follow_the_pods(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "endpoints", Roles::All).await?;
        tenant.seed().await?;
        let controller = tenant.controller("one")?;
        for n in 1..=3 {
            tenant.pod(&format!("target-{n}"), &format!("169.111.100.1{n}"), n != 3).await?;
            // Pods of the same second are ordered by name.
        }
        let (a, b, c) = ("169.111.100.11", "169.111.100.12", "169.111.100.13");
        tenant.expect_endpoints(&[(a, "0", true), (b, "1", true), (c, "2", false)]).await?;
        tenant.pod_ready("target-3", true).await?;
        tenant.expect_endpoints(&[(a, "0", true), (b, "1", true), (c, "2", true)]).await?;
        // It terminates: it serves on, but gets no new flows. There is no kubelet that would end it.
        tenant.cluster.kubectl(&["delete", "pod", "target-1", "-n", &tenant.namespace, "--wait=false"])?;
        tenant.expect_endpoints(&[(a, "0", false), (b, "1", true), (c, "2", true)]).await?;
        let terminating = tenant.slices().await?[0].endpoints[0].conditions.clone().context("conditions")?;
        ensure!(terminating.terminating == Some(true) && terminating.serving == Some(true), "{terminating:?}");
        tenant.cluster.kubectl(&[
            "delete",
            "pod",
            "target-1",
            "-n",
            &tenant.namespace,
            "--force",
            "--grace-period=0",
        ])?;
        tenant.expect_endpoints(&[(b, "1", true), (c, "2", true)]).await?;
        tenant.pod("target-4", "169.111.100.14", true).await?;
        tenant.expect_endpoints(&[(b, "1", true), (c, "2", true), ("169.111.100.14", "0", true)]).await?;
        // The other family, the wrong network, no network: none counts.
        tenant.pod("target-5", "10.0.0.5", true).await?;
        tenant
            .put(
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "target-6", "labels": {"app": "target"}},
                          "spec": {"nodeName": "lab", "containers": [{"name": "app", "image": "app"}]}}),
            )
            .await?;
        tenant.expect_quiet().await?;
        ensure!(tenant.endpoints().await?.len() == 3, "{:?}", tenant.endpoints().await?);
        // The Service loses its label: its slices go.
        tenant.cluster.kubectl(&[
            "label",
            "service",
            "service-a",
            "-n",
            &tenant.namespace,
            "service.kubernetes.io/service-proxy-name-",
        ])?;
        tenant.expect_endpoints(&[]).await?;
        tenant.condition("L34Route", "vip-a", "ResolvedRefs", "False", "ServiceOfAnotherGateway").await?;
        controller.stop().await
    })
}

pub fn capacity_is_told_on_gateway_route_and_by_an_event(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "capacity", Roles::All).await?;
        tenant.seed().await?;
        let mut service = play::service("service-a", "sllb-a");
        service["metadata"]["annotations"] = json!({"meridio-experiment/service-max-endpoints": "1"});
        tenant.put(service).await?;
        let controller = tenant.controller("one")?;
        tenant.pod("target-1", "169.111.100.11", true).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        tenant.pod("target-2", "169.111.100.12", true).await?;
        let message = tenant.condition("Gateway", "sllb-a", "EndpointsAccepted", "False", "CapacityExceeded").await?;
        ensure!(message.contains("service-a") && message.contains("target-2"), "{message}");
        tenant.condition("L34Route", "vip-a", "ResolvedRefs", "True", "CapacityExceeded").await?;
        tenant
            .event("sllb-a", "CapacityExceeded", "Warning", &["service-a", "target-2", "service-max-endpoints"])
            .await?;
        controller.stop().await
    })
}

/// Each fault on the object that has it; what worked before works on.
pub fn faults_are_told_on_the_object_that_has_them(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "faults", Roles::All).await?;
        tenant.seed().await?;
        let controller = tenant.controller("one")?;
        tenant.pod("target-1", "169.111.100.11", true).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        // Of two routes of one priority the second by name loses, and is told which one wins.
        tenant.put(play::route("vip-late", "service-a", &["20.0.0.1/32"])).await?;
        let message = tenant.condition("L34Route", "vip-late", "Accepted", "False", "Overlap").await?;
        ensure!(message.contains("L34Route vip-a"), "{message}");
        tenant.event("vip-late", "ConfigRejected", "Warning", &["L34Route vip-a"]).await?;
        tenant.condition("L34Route", "vip-a", "Accepted", "True", "Accepted").await?;
        tenant.put(play::route("vip-lost", "service-nobody", &["20.0.0.3/32"])).await?;
        let message = tenant.condition("L34Route", "vip-lost", "ResolvedRefs", "False", "BackendNotFound").await?;
        ensure!(message.contains("service-nobody"), "{message}");
        let mut astray = play::route("vip-astray", "service-a", &["20.0.0.4/32"]);
        astray["spec"]["parentRefs"][0]["name"] = json!("sllb-nobody");
        tenant.put(astray).await?;
        let message = tenant.condition("L34Route", "vip-astray", "Accepted", "False", "NoMatchingParent").await?;
        ensure!(message.contains("sllb-nobody"), "{message}");
        // The same subnet on another network is another subnet.
        let status = json!([{"name": format!("{}/macvlan-nad-2", tenant.namespace), "interface": "net1", "ips": ["169.111.100.12"]}]);
        tenant.put(json!({"apiVersion": "v1", "kind": "Pod",
                          "metadata": {"name": "target-2", "labels": {"app": "target"},
                                       "annotations": {"k8s.v1.cni.cncf.io/network-status": status.to_string()}},
                          "spec": {"nodeName": "lab", "containers": [{"name": "app", "image": "app"}]}})).await?;
        tenant.pod_ready("target-2", true).await?;
        tenant.expect_quiet().await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        // Annotations that say nothing: told, and endpoints keep their addresses.
        for (annotation, value, reason) in [
            ("meridio-experiment/networks", json!("macvlan-nad-1"), "AnnotationMalformed"),
            ("meridio-experiment/networks", Value::Null, "AnnotationMissing"),
            ("meridio-experiment/network-subnets", json!("[]"), "AnnotationMalformed"),
        ] {
            let mut gateway = play::gateway("sllb-a", CLASS);
            gateway["spec"]["infrastructure"]["annotations"][annotation] = value.clone();
            if value.is_null() {
                let annotations = gateway["spec"]["infrastructure"]["annotations"].as_object_mut().context("no annotations")?;
                annotations.remove(annotation);
            }
            tenant.put(gateway).await?;
            let message = tenant.condition("Gateway", "sllb-a", "NetworksResolved", "False", reason).await?;
            ensure!(message.contains(annotation), "{message}");
            tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        }
        tenant.put(play::gateway("sllb-a", CLASS)).await?;
        tenant.condition("Gateway", "sllb-a", "NetworksResolved", "True", "NetworksResolved").await?;
        controller.stop().await
    })
}

pub fn nothing_but_infrastructure_rolls_the_pods(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "roll", Roles::All).await?;
        tenant.seed().await?;
        let controller = tenant.controller("one")?;
        let generation = |deployment: &Value| deployment["metadata"]["generation"].clone();
        let first = generation(&tenant.expect("Deployment", "sllbr-sllb-a", "it is there", |_| true).await?);
        tenant.put(play::route("vip-b", "service-a", &["20.0.0.2/32", "2000::2/128"])).await?;
        tenant.put(play::service("service-b", "sllb-a")).await?;
        tenant.put(play::router("gateway-a-v4", "169.254.100.150")).await?;
        tenant.pod("target-1", "169.111.100.11", true).await?;
        tenant.condition("L34Route", "vip-b", "Accepted", "True", "Accepted").await?;
        tenant.condition("GatewayRouter", "gateway-a-v4", "Accepted", "True", "Accepted").await?;
        tenant
            .expect("Gateway", "sllb-a", "three VIPs", |g| g["status"]["addresses"].as_array().map(Vec::len) == Some(3))
            .await?;
        tenant.expect_quiet().await?;
        let after = tenant.get("Deployment", "sllbr-sllb-a").await?;
        ensure!(generation(&after) == first, "the Deployment changed");
        // An autoscaler or a human scales: it stays so.
        tenant.cluster.kubectl(&["scale", "deployment", "sllbr-sllb-a", "-n", &tenant.namespace, "--replicas=5"])?;
        tenant.expect_quiet().await?;
        let mut gateway = play::gateway("sllb-a", CLASS);
        gateway["spec"]["infrastructure"]["labels"] = json!({"tenant": "blue"});
        tenant.put(gateway).await?;
        let rolled = tenant
            .expect("Deployment", "sllbr-sllb-a", "its label", |d| {
                d["spec"]["template"]["metadata"]["labels"]["tenant"] == "blue"
            })
            .await?;
        ensure!(rolled["spec"]["replicas"] == 5, "replicas are left alone: {}", rolled["spec"]["replicas"]);
        tenant.expect_quiet().await?;
        controller.stop().await
    })
}

pub fn a_template_overrides_and_a_broken_one_is_told(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "template", Roles::All).await?;
        let mut gateway = play::gateway("sllb-a", CLASS);
        gateway["spec"]["infrastructure"]["parametersRef"] = json!({"group": "", "kind": "ConfigMap", "name": "template"});
        tenant.put(gateway).await?;
        let controller = tenant.controller("one")?;
        let message = tenant.condition("Gateway", "sllb-a", "Accepted", "False", "InvalidParameters").await?;
        ensure!(message.contains("template"), "{message}");
        let map = |text: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "template"}, "data": {"deployment": text}});
        tenant.put(map("spec: {replicas: 3, template: {spec: {containers: [{name: lb, resources: {limits: {cpu: '2'}}}]}}}")).await?;
        tenant.condition("Gateway", "sllb-a", "Accepted", "True", "Accepted").await?;
        let made = tenant.expect("Deployment", "sllbr-sllb-a", "it is there", |_| true).await?;
        ensure!(made["spec"]["replicas"] == 3, "{}", made["spec"]["replicas"]);
        ensure!(made["spec"]["template"]["spec"]["containers"][1]["resources"]["limits"]["cpu"] == "2", "resources");
        tenant.put(map("spec: {replicas: many}")).await?;
        let message = tenant.condition("Gateway", "sllb-a", "Accepted", "False", "InvalidParameters").await?;
        ensure!(message.contains("data[deployment]"), "{message}");
        tenant.event("sllb-a", "ConfigRejected", "Warning", &["data[deployment]"]).await?;
        ensure!(tenant.get("Deployment", "sllbr-sllb-a").await?["spec"]["replicas"] == 3, "the last good one stays");
        controller.stop().await
    })
}

pub fn foreign_objects_and_other_tenants_are_untouched(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let other = Tenant::new(cluster, "other", Roles::Base).await?;
        other.seed().await?;
        other.pod("target-1", "169.111.100.11", true).await?;
        let before = other.versions().await?;
        let tenant = Tenant::new(cluster, "tenant", Roles::All).await?;
        let template =
            json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "x", "image": "x"}]}});
        tenant
            .put(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "sllbr-sllb-a"},
                          "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "x"}}, "template": template}}))
            .await?;
        let mut foreign = play::gateway("foreign", "someone-else");
        foreign["metadata"]["labels"] = json!({"a": "b"});
        tenant.put(foreign).await?;
        tenant.seed().await?;
        let mut abroad = play::route("abroad", "service-a", &["20.0.0.9/32"]);
        abroad["spec"]["parentRefs"][0]["namespace"] = json!(other.namespace);
        tenant.put(abroad).await?;
        let controller = tenant.controller("one")?;
        let message = tenant.condition("Gateway", "sllb-a", "Programmed", "False", "Conflict").await?;
        ensure!(message.contains("sllbr-sllb-a"), "{message}");
        tenant.condition("L34Route", "abroad", "Accepted", "False", "RefNotPermitted").await?;
        tenant.expect_quiet().await?;
        let deployment = tenant.get("Deployment", "sllbr-sllb-a").await?;
        ensure!(deployment["spec"]["template"]["spec"]["containers"][0]["name"] == "x", "{deployment}");
        let foreign = tenant.get("Gateway", "foreign").await?;
        ensure!(foreign["status"]["conditions"][0]["reason"] == "Pending", "{foreign}");
        ensure!(other.versions().await? == before, "another tenant's objects changed");
        controller.stop().await
    })
}

pub fn forty_vips_are_cut_to_sixteen_addresses(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "vips", Roles::All).await?;
        tenant.seed().await?;
        let vips: Vec<_> = (1..=40).map(|n| format!("20.0.0.{n}/32")).collect();
        tenant.put(play::route("vip-a", "service-a", &vips.iter().map(String::as_str).collect::<Vec<_>>())).await?;
        let controller = tenant.controller("one")?;
        let message = tenant.condition("Gateway", "sllb-a", "AddressesTruncated", "True", "TooManyAddresses").await?;
        ensure!(message.contains("40"), "{message}");
        let gateway = tenant.get("Gateway", "sllb-a").await?;
        ensure!(
            gateway["status"]["addresses"].as_array().map(Vec::len) == Some(16),
            "{}",
            gateway["status"]["addresses"]
        );
        tenant.put(play::route("vip-a", "service-a", &["20.0.0.1/32"])).await?;
        tenant
            .expect("Gateway", "sllb-a", "no longer truncated", |g| {
                !g["status"]["conditions"].to_string().contains("AddressesTruncated")
            })
            .await?;
        controller.stop().await
    })
}

pub fn a_class_of_ours_is_accepted_and_one_of_others_decides(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "classes", Roles::All).await?;
        let class = |name: &str, controller: &str| {
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": name},
                   "spec": {"controllerName": controller}})
        };
        tenant.put(class("ours", CLASS)).await?;
        tenant.put(class("theirs", "example.com/other")).await?;
        tenant.put(play::gateway("by-class", "ours")).await?;
        tenant.put(play::gateway("by-name", CLASS)).await?;
        tenant.put(play::gateway("not-ours", "theirs")).await?;
        let controller = tenant.controller("one")?;
        tenant.condition("Gateway", "by-class", "Accepted", "True", "Accepted").await?;
        tenant.condition("Gateway", "by-name", "Accepted", "True", "Accepted").await?;
        wait_for("the class to be accepted", LIMIT, async || {
            let text = tenant.cluster.kubectl(&[
                "get",
                "gatewayclass",
                "ours",
                "-o",
                "jsonpath={.status.conditions[0].status}",
            ])?;
            Ok((text == "True").then_some(()))
        })
        .await?;
        let theirs = tenant.cluster.kubectl(&[
            "get",
            "gatewayclass",
            "theirs",
            "-o",
            "jsonpath={.status.conditions[0].status}",
        ])?;
        ensure!(theirs == "Unknown", "{theirs}");
        ensure!(tenant.list("Deployment").await?.len() == 2, "one for each Gateway of ours");
        controller.stop().await
    })
}

pub fn sessions_are_gathered_into_columns_gates_and_events(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "sessions", Roles::All).await?;
        tenant.seed().await?;
        tenant.put(play::router("gateway-a-v4", "169.254.100.150")).await?;
        let controller = tenant.controller("one")?;
        tenant.condition("GatewayRouter", "gateway-a-v4", "Programmed", "False", "Pending").await?;
        let deployment = tenant.expect("Deployment", "sllbr-sllb-a", "it is there", |_| true).await?;
        for pod in ["sllbr-1", "sllbr-2"] {
            let mut object = deployment["spec"]["template"].clone();
            object["apiVersion"] = json!("v1");
            object["kind"] = json!("Pod");
            object["metadata"]["name"] = json!(pod);
            object["spec"]["nodeName"] = json!("lab");
            tenant.put(object).await?;
            tenant.put(play::state(pod, true)).await?;
        }
        let gate = |pod: &Value, gate: &str| {
            let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            all.iter().find(|c| c["type"] == gate).map(|c| c["status"].as_str().unwrap_or_default().to_owned())
        };
        let (v4, v6) = ("meridio-experiment/ipv4-connectivity", "meridio-experiment/ipv6-connectivity");
        for pod in ["sllbr-1", "sllbr-2"] {
            tenant
                .expect("Pod", pod, "both gates open", |p| {
                    gate(p, v4).as_deref() == Some("True") && gate(p, v6).as_deref() == Some("True")
                })
                .await?;
        }
        tenant.condition("GatewayRouter", "gateway-a-v4", "Programmed", "True", "Programmed").await?;
        let shown = tenant.cluster.kubectl(&["get", "gatewayrouters", "-n", &tenant.namespace])?;
        ensure!(shown.contains("2/2 Established") && shown.contains("2/2 Up"), "{shown}");
        tenant.event("gateway-a-v4", "SessionUp", "Normal", &["sllbr-1", "Established"]).await?;
        tenant.event("sllb-a", "VipAnnounced", "Normal", &["sllbr-1", "20.0.0.1"]).await?;
        tenant.put(play::state("sllbr-2", false)).await?;
        tenant.condition("GatewayRouter", "gateway-a-v4", "Programmed", "True", "Degraded").await?;
        tenant.expect("Pod", "sllbr-2", "its gate closed", |p| gate(p, v4).as_deref() == Some("False")).await?;
        for reason in ["SessionDown", "BfdDown"] {
            tenant.event("gateway-a-v4", reason, "Warning", &["sllbr-2", "Control Detection Time Expired"]).await?;
        }
        tenant
            .event("sllb-a", "VipWithdrawn", "Warning", &["sllbr-2", "20.0.0.1", "no IPv4 gateway router is Up"])
            .await?;
        let shown = tenant.cluster.kubectl(&["get", "gatewayrouters", "-n", &tenant.namespace, "-o", "wide"])?;
        ensure!(shown.contains("1/2 Established") && shown.contains("Detection Time"), "{shown}");
        // A session that flaps is counted on the Events that are there: no flood.
        for round in 0..40 {
            tenant.put(play::state("sllbr-2", round % 2 == 0)).await?;
        }
        tenant.condition("GatewayRouter", "gateway-a-v4", "Programmed", "True", "Degraded").await?;
        tokio::time::sleep(play::QUIET).await;
        for (object, reason) in
            [("gateway-a-v4", "SessionUp"), ("gateway-a-v4", "SessionDown"), ("sllb-a", "VipWithdrawn")]
        {
            let told = tenant.events(object, reason).await?;
            ensure!(told.len() <= 2, "{} Events {reason} of two pods: {told:#?}", told.len());
        }
        tenant.expect_quiet().await?;
        controller.stop().await
    })
}
