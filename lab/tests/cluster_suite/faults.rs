//! The controller when something fails: rights, leaders, the API server, etcd.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use martlet_lab::cluster::Cluster;
use martlet_lab::cluster::objects::wait_for;
use martlet_lab::cluster::proxy::{Proxy, Way};
use serde_json::{Value, json};

use super::play::{self, CLASS, Roles, Tenant, logged};

pub fn under_base_alone_what_the_seed_asks_works_and_each_missing_right_is_a_line(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "base", Roles::Base).await?;
        // Another test may have bound it; it has no namespace.
        martlet_lab::cluster::objects::delete(&tenant.admin, "", &play::classes_binding()).await?;
        tenant.seed().await?;
        tenant.put(play::router("gateway-a-v4", "169.254.100.150")).await?;
        tenant.pod("target-1", "169.111.100.11", true).await?;
        logged();
        let controller = tenant.controller("one")?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        let deployment = tenant.expect("Deployment", "sllbr-sllb-a", "it is there", |_| true).await?;
        ensure!(deployment["spec"]["template"]["spec"]["readinessGates"].is_null(), "gates that nobody opens");
        tenant.condition("Gateway", "sllb-a", "Accepted", "True", "Accepted").await?;
        tenant.expect_quiet().await?;
        let log = logged();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("without this right")).collect();
        ensure!(lines.len() == 9, "{} lines: {log}", lines.len());
        for right in [
            "l34routes/status",
            "gatewayrouters",
            "routerstates",
            "pods/status",
            "configmaps",
            "poddisruptionbudgets",
            "gatewayclasses",
            "events",
            "leases",
        ] {
            ensure!(lines.iter().filter(|line| line.contains(right)).count() >= 1, "no line for {right}: {log}");
        }
        ensure!(!log.contains("Forbidden") && !log.contains("forbidden"), "it tries what it may not: {log}");
        controller.stop().await
    })
}

pub fn of_two_controllers_one_acts_and_the_other_takes_over(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "leaders", Roles::All).await?;
        tenant.seed().await?;
        let one = tenant.controller("one")?;
        let holder = |name: &'static str| move |lease: &Value| lease["spec"]["holderIdentity"] == name;
        tenant.expect("Lease", "martlet-controller", "one leads", holder("one")).await?;
        let two = tenant.controller("two")?;
        tenant.pod("target-1", "169.111.100.11", true).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        tenant.expect_quiet().await?;
        ensure!(tenant.get("Lease", "martlet-controller").await?["spec"]["holderIdentity"] == "one", "one still leads");
        // In good order: at once.
        one.stop().await?;
        tenant.expect("Lease", "martlet-controller", "two leads", holder("two")).await?;
        tenant.pod("target-2", "169.111.100.12", true).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true), ("169.111.100.12", "1", true)]).await?;
        // By death: after the Lease has run out.
        let three = tenant.controller("three")?;
        two.kill();
        tenant.expect("Lease", "martlet-controller", "three leads", holder("three")).await?;
        tenant.pod_ready("target-2", false).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true), ("169.111.100.12", "1", false)]).await?;
        three.stop().await
    })
}

pub fn two_controllers_that_both_act_settle(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        // Without the right to hold Leases both believe to be alone.
        let tenant = Tenant::new(cluster, "fight", Roles::Base).await?;
        tenant.seed().await?;
        let (one, two) = (tenant.controller("one")?, tenant.controller("two")?);
        for n in 1..=8 {
            tenant.pod(&format!("target-{n}"), &format!("169.111.100.1{n}"), true).await?;
        }
        let all: Vec<_> = (1..=8).map(|n| format!("169.111.100.1{n}")).collect();
        wait_for("eight endpoints with identifiers of their own", play::LIMIT, async || {
            let found = tenant.endpoints().await?;
            let addresses: Vec<_> = found.iter().map(|(address, ..)| address.clone()).collect();
            let identifiers: std::collections::BTreeSet<_> =
                found.iter().map(|(_, identifier, _)| identifier.clone()).collect();
            Ok((addresses == all && identifiers.len() == 8).then_some(()))
        })
        .await?;
        tenant.expect_quiet().await?;
        one.stop().await?;
        two.stop().await
    })
}

pub fn revoked_rights_are_noticed_and_mended(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "revoked", Roles::All).await?;
        tenant.seed().await?;
        let controller = tenant.controller("one")?;
        tenant.pod("target-1", "169.111.100.11", true).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        tenant.cluster.kubectl(&["delete", "rolebinding", "martlet-controller-base", "-n", &tenant.namespace])?;
        tenant.pod("target-2", "169.111.100.12", true).await?;
        tokio::time::sleep(play::QUIET).await;
        ensure!(tenant.endpoints().await?.len() == 1, "it writes without the right");
        tenant.bind("martlet-controller-base").await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true), ("169.111.100.12", "1", true)]).await?;
        controller.stop().await
    })
}

/// What the Role `extra` gives, taken away and given back while the controller runs: what the seed asks goes on, and nothing that is
/// there is taken away.
pub fn extra_rights_revoked_take_nothing_down_and_are_used_again(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "extra", Roles::All).await?;
        tenant.put(json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "extra"},
                          "spec": {"controllerName": CLASS}})).await?;
        tenant.put(play::gateway("sllb-a", "extra")).await?;
        tenant.put(play::service("service-a", "sllb-a")).await?;
        tenant.put(play::route("vip-a", "service-a", &["20.0.0.1/32"])).await?;
        let controller = tenant.controller_with("one", |options| options.ask_rights = Duration::from_secs(1))?;
        tenant.pod("target-1", "169.111.100.11", true).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        tenant.condition("L34Route", "vip-a", "Accepted", "True", "Accepted").await?;
        let made = tenant.expect("Deployment", "sllbr-sllb-a", "it is there", |_| true).await?;
        ensure!(made["spec"]["template"]["spec"]["readinessGates"].is_array(), "no gates: {made}");
        tenant.cluster.kubectl(&["delete", "rolebinding", "martlet-controller-extra", "-n", &tenant.namespace])?;
        tenant.unbind_classes().await?;
        // A status that may no longer be written, and endpoints that still are.
        tenant.put(play::route("vip-b", "service-a", &["20.0.0.2/32"])).await?;
        tenant.pod("target-2", "169.111.100.12", true).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true), ("169.111.100.12", "1", true)]).await?;
        tokio::time::sleep(play::QUIET).await;
        ensure!(tenant.get("L34Route", "vip-b").await?["status"].is_null(), "a status without the right");
        // Whoever begins without the right to read classes cannot know whose the Gateway is, and leaves alone what there is.
        controller.stop().await?;
        let controller = tenant.controller_with("two", |options| options.ask_rights = Duration::from_secs(1))?;
        tokio::time::sleep(2 * play::QUIET).await;
        ensure!(tenant.endpoints().await?.len() == 2, "{:?}", tenant.endpoints().await?);
        ensure!(tenant.get("Deployment", "sllbr-sllb-a").await?["metadata"]["uid"] == made["metadata"]["uid"], "made anew");
        tenant.bind("martlet-controller-extra").await?;
        tenant.bind_classes().await?;
        tenant.condition("L34Route", "vip-b", "Accepted", "True", "Accepted").await?;
        tenant.pod("target-3", "169.111.100.13", true).await?;
        let all = [("169.111.100.11", "0", true), ("169.111.100.12", "1", true), ("169.111.100.13", "2", true)];
        tenant.expect_endpoints(&all).await?;
        let after = tenant.get("Deployment", "sllbr-sllb-a").await?;
        ensure!(after["metadata"]["generation"] == made["metadata"]["generation"], "the pods were rolled: {after}");
        controller.stop().await
    })
}

/// Another replica whose clock is a day off holds the Lease: it is followed by what is seen, not by what it says the time is.
pub fn the_clocks_of_two_replicas_may_differ_by_a_day(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let (behind, ahead) = tokio::join!(clock_differs(cluster, -24), clock_differs(cluster, 24));
        behind.context("behind")?;
        ahead.context("ahead")
    })
}

async fn clock_differs(cluster: &Cluster<'_>, hours: i64) -> Result<()> {
    let tenant = Tenant::new(cluster, "clock", Roles::All).await?;
    tenant.seed().await?;
    let renew = async || {
        let time = Timestamp::now().checked_add(SignedDuration::from_hours(hours))?;
        let time = format!("{time:.6}");
        let spec =
            json!({"holderIdentity": "other", "leaseDurationSeconds": 3, "acquireTime": time, "renewTime": time});
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                           "metadata": {"name": "martlet-controller"}, "spec": spec});
        tenant.put(lease).await
    };
    let holder =
        async || anyhow::Ok(tenant.get("Lease", "martlet-controller").await?["spec"]["holderIdentity"].clone());
    renew().await?;
    let controller = tenant.controller("one")?;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        ensure!(holder().await? == "other", "taken from one that renews it");
        renew().await?;
    }
    ensure!(tenant.list("Deployment").await?.is_empty(), "it acts without the Lease");
    // It falls silent: the Lease is free after its duration, by the clock of whoever waits.
    let silent = Instant::now();
    tenant.expect("Lease", "martlet-controller", "one leads", |lease| lease["spec"]["holderIdentity"] == "one").await?;
    let waited = silent.elapsed();
    ensure!(waited > Duration::from_millis(2500), "taken after {waited:?}, before its 3 s were over");
    tenant.expect("Deployment", "sllbr-sllb-a", "it is there", |_| true).await?;
    // The other comes back and takes it, as its clock may tell it: the first sees that, and acts no more.
    renew().await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    renew().await?;
    tenant.pod("target-1", "169.111.100.11", true).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(tenant.endpoints().await?.is_empty() && holder().await? == "other", "two act at once");
    tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
    controller.stop().await
}

pub fn what_others_delete_or_change_comes_back(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "deleted", Roles::All).await?;
        tenant.seed().await?;
        let controller = tenant.controller("one")?;
        tenant.pod("target-1", "169.111.100.11", true).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        let made = tenant.expect("Deployment", "sllbr-sllb-a", "it is there", |_| true).await?;
        tenant.expect("PodDisruptionBudget", "sllbr-sllb-a", "it is there", |_| true).await?;
        let before = made["metadata"]["uid"].clone();
        tenant.cluster.kubectl(&["delete", "deployment", "sllbr-sllb-a", "-n", &tenant.namespace])?;
        tenant.cluster.kubectl(&["delete", "pdb", "sllbr-sllb-a", "-n", &tenant.namespace])?;
        tenant.cluster.kubectl(&["delete", "endpointslices", "--all", "-n", &tenant.namespace])?;
        tenant.expect("Deployment", "sllbr-sllb-a", "it is back", |d| d["metadata"]["uid"] != before).await?;
        tenant.expect("PodDisruptionBudget", "sllbr-sllb-a", "it is back", |_| true).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        tenant.cluster.kubectl(&["set", "image", "deployment/sllbr-sllb-a", "router=evil", "-n", &tenant.namespace])?;
        tenant
            .expect("Deployment", "sllbr-sllb-a", "its image", |d| {
                d["spec"]["template"]["spec"]["containers"][0]["image"] != "evil"
            })
            .await?;
        // In every order: the Service, the route, the Gateway.
        tenant.delete("Service", "v1", "service-a").await?;
        tenant.condition("L34Route", "vip-a", "ResolvedRefs", "False", "BackendNotFound").await?;
        tenant.delete("Gateway", "gateway.networking.k8s.io/v1", "sllb-a").await?;
        tenant.condition("L34Route", "vip-a", "Accepted", "False", "NoMatchingParent").await?;
        tenant.expect_quiet().await?;
        tenant.seed().await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        tenant.condition("Gateway", "sllb-a", "Accepted", "True", "Accepted").await?;
        controller.stop().await
    })
}

pub fn the_api_server_dies_and_comes_back_after_a_compaction(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "outage", Roles::All).await?;
        tenant.seed().await?;
        tenant.pod("target-1", "169.111.100.11", true).await?;
        let probe = SocketAddr::from(([127, 0, 0, 1], 22_290));
        let controller = tenant.controller_with("one", |options| options.health = Some(probe))?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
        tenant.expect_quiet().await?;
        let before = tenant.versions().await?;
        let told_before = tenant.get("Gateway", "sllb-a").await?["status"].clone();
        let serving = async |wanted: bool| {
            wait_for(&format!("Readiness of the controller to be {wanted}"), play::LIMIT, async || {
                // It is alive in any case: a kubelet must not restart it.
                ensure!(play::serves(&probe, "").await?, "not alive");
                Ok((play::serves(&probe, "Readiness").await? == wanted).then_some(()))
            })
            .await
        };
        serving(true).await?;
        logged();
        cluster.kill_server()?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        serving(false).await?;
        // All versions that the watches know are forgotten: they are told 410 Gone, and must read all again.
        cluster.compact()?;
        cluster.restart_server()?;
        cluster.ready().await?;
        let back = Instant::now();
        tenant.pod("target-2", "169.111.100.12", true).await?;
        tenant.expect_endpoints(&[("169.111.100.11", "0", true), ("169.111.100.12", "1", true)]).await?;
        serving(true).await?;
        println!("    the controller follows {:.1} s after the server is back", back.elapsed().as_secs_f32());
        tenant.expect_quiet().await?;
        let log = logged();
        ensure!(
            log.contains("too old resource version") || log.contains("compacted"),
            "no watch was told 410 Gone:\n{log}"
        );
        let after = tenant.versions().await?;
        let of = |all: &[(String, String, String)], kind: &str| -> Vec<_> {
            all.iter().filter(|(k, ..)| k == kind).cloned().collect()
        };
        let told = tenant.get("Gateway", "sllb-a").await?["status"].clone();
        for kind in ["Deployment", "L34Route", "PodDisruptionBudget", "Gateway"] {
            let same = of(&before, kind) == of(&after, kind);
            ensure!(same, "{kind} was written for nothing: {before:?} {after:?}\n{told_before}\n{told}\n{log}");
        }
        controller.stop().await
    })
}

pub fn of_many_pods_a_change_touches_one_slice(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "many", Roles::All).await?;
        tenant.put(play::gateway("sllb-a", CLASS)).await?;
        let mut service = play::service("service-a", "sllb-a");
        service["metadata"]["annotations"] = json!({"meridio-experiment/service-max-endpoints": "1000"});
        tenant.put(service).await?;
        for n in 0..60 {
            tenant.put(play::route(&format!("vip-{n}"), "service-a", &[&format!("20.0.1.{n}/32")])).await?;
        }
        let controller = tenant.controller("one")?;
        for n in 0..120 {
            tenant.pod(&format!("target-{n}"), &format!("169.111.100.{n}"), true).await?;
        }
        wait_for("120 endpoints", play::LIMIT, async || Ok((tenant.endpoints().await?.len() == 120).then_some(())))
            .await?;
        let slices = tenant.slices().await?;
        let sizes: Vec<_> = slices.iter().map(|slice| slice.endpoints.len()).collect();
        ensure!(sizes == [100, 20], "{sizes:?}");
        let versions = |all: &[k8s_openapi::api::discovery::v1::EndpointSlice]| -> Vec<_> {
            all.iter().map(kube::ResourceExt::resource_version).collect()
        };
        let before = versions(&slices);
        let start = Instant::now();
        tenant.pod_ready("target-119", false).await?;
        wait_for("one endpoint less", play::LIMIT, async || {
            Ok(tenant.endpoints().await?.iter().any(|(.., ready)| !ready).then_some(()))
        })
        .await?;
        println!("    readiness of a pod is in its slice after {} ms", start.elapsed().as_millis());
        let after = versions(&tenant.slices().await?);
        ensure!(before[0] == after[0] && before[1] != after[1], "one slice changes: {before:?} {after:?}");
        controller.stop().await
    })
}

/// Gateway, route, Service and Pod, deleted at once in each of the 24 orders.
pub fn deleted_in_every_order_nothing_is_left(cluster: &Cluster<'_>) -> Result<()> {
    const OBJECTS: [(&str, &str, &str); 4] = [
        ("Gateway", "gateway.networking.k8s.io/v1", "sllb-a"),
        ("L34Route", "meridio.experiment.gateway.api.poc/v1alpha1", "vip-a"),
        ("Service", "v1", "service-a"),
        ("Pod", "v1", "target-1"),
    ];
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "orders", Roles::All).await?;
        let controller = tenant.controller("one")?;
        for order in 0..24 {
            tenant.seed().await?;
            tenant.pod("target-1", "169.111.100.11", true).await?;
            tenant.expect_endpoints(&[("169.111.100.11", "0", true)]).await?;
            let (mut left, mut number) = (OBJECTS.to_vec(), order);
            for places in (1..=left.len()).rev() {
                let (kind, version, name) = left.remove(number % places);
                number /= places;
                if kind == "Pod" {
                    let force = ["--force", "--grace-period=0", "-n", &tenant.namespace];
                    cluster.kubectl(&[&["delete", "pod", name], &force[..]].concat())?;
                } else {
                    tenant.delete(kind, version, name).await?;
                }
            }
            tenant.expect_endpoints(&[]).await?;
            // The garbage collector is not there: it would do this.
            tenant.delete("Deployment", "apps/v1", "sllbr-sllb-a").await?;
            tenant.delete("PodDisruptionBudget", "policy/v1", "sllbr-sllb-a").await?;
        }
        tenant.expect_quiet().await?;
        ensure!(tenant.versions().await?.is_empty(), "something is left: {:?}", tenant.versions().await?);
        controller.stop().await
    })
}

/// Watches that break, a server that says nothing, lists that take seconds.
pub fn a_bad_way_to_the_server_loses_nothing(cluster: &Cluster<'_>) -> Result<()> {
    cluster.inside(async |cluster| {
        let tenant = Tenant::new(cluster, "way", Roles::All).await?;
        tenant.seed().await?;
        for n in 0..40 {
            tenant.put(play::route(&format!("vip-{n}"), "service-a", &[&format!("20.0.1.{n}/32")])).await?;
        }
        let proxy = Proxy::start(cluster).await?;
        let probe = SocketAddr::from(([127, 0, 0, 1], 22_291));
        let through = |options: &mut martlet_controller::Options| {
            options.client = cluster.client_through("controller", proxy.port()).ok();
            options.health = Some(probe);
            // A leader that cannot renew gives up: that is another test.
            options.lease.duration = Duration::from_secs(30);
            options.lease.deadline = Duration::from_secs(25);
        };
        let controller = tenant.controller_with("one", through)?;
        let (a, b, c, d) = ("169.111.100.11", "169.111.100.12", "169.111.100.13", "169.111.100.14");
        tenant.pod("target-1", a, true).await?;
        tenant.expect_endpoints(&[(a, "0", true)]).await?;
        for _ in 0..3 {
            proxy.cut();
        }
        // Watches go on where they broke, and say nothing: the controller is ready all the same.
        tokio::time::sleep(Duration::from_secs(1)).await;
        wait_for("the controller to be ready after its watches broke", play::LIMIT, async || {
            Ok(play::serves(&probe, "Readiness").await?.then_some(()))
        })
        .await?;
        tenant.pod("target-2", b, true).await?;
        tenant.expect_endpoints(&[(a, "0", true), (b, "1", true)]).await?;
        proxy.set(Way::Held);
        tenant.pod("target-3", c, true).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(tenant.endpoints().await?.len() == 2, "something came through");
        proxy.set(Way::Open);
        tenant.expect_endpoints(&[(a, "0", true), (b, "1", true), (c, "2", true)]).await?;
        controller.stop().await?;
        // A list of 40 routes takes seconds: until all is known nothing is written, and nothing that is there is taken away.
        tenant.expect_quiet().await?;
        let before = tenant.versions().await?;
        proxy.set(Way::Slow(20_000));
        let controller = tenant.controller_with("two", through)?;
        let start = Instant::now();
        let holder = |lease: &Value| lease["spec"]["holderIdentity"] == "two";
        tenant.expect("Lease", "martlet-controller", "two leads", holder).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(tenant.versions().await? == before, "written on half a list");
        tenant.pod("target-4", d, true).await?;
        tenant.expect_endpoints(&[(a, "0", true), (b, "1", true), (c, "2", true), (d, "3", true)]).await?;
        println!("    at 20 kB/s a controller acts {:.1} s after its start", start.elapsed().as_secs_f32());
        proxy.set(Way::Open);
        controller.stop().await
    })
}
