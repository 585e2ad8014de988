//! The whole way: the example's objects -> Deployment -> `ReplicaSet` -> Pods in namespaces -> a real gateway -> traffic, and back.
//!
//! The steps are gone in this order, on one stage (see [`super::stage`]); each leaves two load-balancer pods that serve.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use martlet_controller::deployment::{MORE_SYSCTLS, SYSCTLS, Sysctls};
use martlet_lab::cluster::objects;
use martlet_lab::peer::Gateway as _;
use martlet_lab::wait::{Seen, until};
use martlet_lab::{Cut, Signal};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::play;
use super::stage::{LIMIT, Stage, Step, is_ready, under_traffic};

pub const STEPS: &[Step] = &[
    ("the_example_becomes_pods_that_serve", the_example_becomes_pods_that_serve),
    ("routers_tell_their_sessions_and_open_the_gates", routers_tell_their_sessions_and_open_the_gates),
    ("events_tell_what_became_of_sessions_and_vips", events_tell_what_became_of_sessions_and_vips),
    ("router_and_lb_run_under_base_alone", router_and_lb_run_under_base_alone),
    (
        "no_change_of_vip_route_service_or_router_rolls_or_loses",
        no_change_of_vip_route_service_or_router_rolls_or_loses,
    ),
    ("forty_vips_are_all_announced", forty_vips_are_all_announced),
    ("a_password_is_watched_and_a_session_waits_for_it", a_password_is_watched_and_a_session_waits_for_it),
    ("a_password_is_rolled_and_the_sessions_follow", a_password_is_rolled_and_the_sessions_follow),
    ("pods_scale_without_loss", pods_scale_without_loss),
    ("a_rolling_update_loses_nothing_and_sysctls_may_come_from_the_pod", a_rolling_update_loses_nothing),
    ("while_the_api_server_is_away_everything_goes_on", while_the_api_server_is_away_everything_goes_on),
    ("a_pod_without_an_internal_address_is_named_and_announces_nothing", a_pod_without_an_internal_address_is_named),
    ("the_end_of_a_gateway_withdraws_and_cleans", the_end_of_a_gateway_withdraws_and_cleans),
    ("the_end_of_a_namespace_withdraws_and_cleans", the_end_of_a_namespace_withdraws_and_cleans),
];

fn the_example_becomes_pods_that_serve(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    let start = Instant::now();
    stage.outside.expect_next_hops(2)?;
    println!("    both VIPs have two next hops at the gateway after {:.1} s", start.elapsed().as_secs_f32());
    run.block_on(async {
        let tenant = &stage.tenant;
        tenant.condition("Gateway", "sllb-a", "Programmed", "True", "Programmed").await?;
        tenant.condition("Gateway", "sllb-a", "Ready", "True", "Ready").await?;
        stage.settled(2).await?;
        ensure!(tenant.endpoints().await?.len() == 6, "three pods, two families: {:?}", tenant.endpoints().await?);
        anyhow::Ok(())
    })?;
    let answered = stage.outside.ask(30)?;
    ensure!(answered.len() == 3, "all three applications answer: {answered:?}");
    sysctls_are_set(stage, run)?;
    nobody_is_root(stage, run)
}

fn routers_tell_their_sessions_and_open_the_gates(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    run.block_on(async {
        objects::wait_for("the sessions of both families in the columns", LIMIT, async || {
            let shown = stage.kubectl(&["get", "gatewayrouters", "-o", "wide"])?;
            let all = shown.matches("2/2 Established").count() == 2 && shown.matches("2/2 Up").count() == 2;
            ensure!(all, "{shown}");
            Ok(Some(()))
        })
        .await?;
        for (name, pod) in stage.balancers().await? {
            let told = stage.tenant.get("RouterState", &name).await?;
            let owner = &told["metadata"]["ownerReferences"][0];
            ensure!(owner["kind"] == "Pod" && owner["uid"] == pod["metadata"]["uid"], "{owner}");
            let writers: BTreeSet<_> = told["metadata"]["managedFields"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|fields| (fields["manager"].to_string(), fields["operation"].to_string()))
                .collect();
            ensure!(writers == [("\"martlet-router\"".to_owned(), "\"Apply\"".to_owned())].into(), "{writers:?}");
            let announced =
                told["spec"]["vips"].as_array().into_iter().flatten().filter(|vip| vip["announced"] == true);
            ensure!(announced.count() == 2, "{}", told["spec"]);
            let gates: Vec<_> = pod["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|c| c["type"].as_str().is_some_and(|kind| kind.ends_with("-connectivity")))
                .map(|c| c["status"].clone())
                .collect();
            ensure!(gates == ["True", "True"] && is_ready(&pod), "{name}: {}", pod["status"]["conditions"]);
        }
        // Nothing changes: nothing is written.
        let versions = async || -> Result<Vec<_>> {
            let all = stage.tenant.list("RouterState").await?;
            Ok(all.into_iter().map(|state| state.metadata.resource_version).collect())
        };
        let before = versions().await?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        ensure!(before == versions().await?, "written though nothing changed");
        // The way to the gateway is cut: the columns say so, and the gates of both families close.
        stage.outside.fabric.cut("gateway", Cut::Silent)?;
        let degraded = objects::wait_for("no session in the columns, and no pod ready", LIMIT, async || {
            let shown = stage.kubectl(&["get", "gatewayrouters", "-o", "wide"])?;
            let none = shown.matches("0/2 Established").count() == 2 && shown.matches("0/2 Up").count() == 2;
            Ok((none && !stage.balancers().await?.values().any(is_ready)).then_some(()))
        });
        let degraded = degraded.await;
        stage.outside.fabric.mend("gateway")?;
        degraded?;
        stage.settled(2).await
    })
}

/// What the cut of the step before did, as a human sees it: `kubectl describe` shows the Events of an object by its uid.
fn events_tell_what_became_of_sessions_and_vips(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    let tenant = &stage.tenant;
    run.block_on(async {
        for pod in stage.balancers().await?.into_keys() {
            let (pod, expired) = (pod.as_str(), "DetectionTimeExpired");
            for (object, reason, kind, words) in [
                ("gateway-a-v4", "SessionUp", "Normal", &[pod, "Established"][..]),
                ("gateway-a-v6", "SessionUp", "Normal", &[pod, "Established"]),
                ("gateway-a-v4", "SessionDown", "Warning", &[pod, expired]),
                ("gateway-a-v4", "BfdDown", "Warning", &[pod, "BFD is Down", expired]),
                ("sllb-a", "VipAnnounced", "Normal", &[pod, "20.0.0.1"]),
                ("sllb-a", "VipWithdrawn", "Warning", &[pod, "20.0.0.1", "no IPv4 gateway router is Up"]),
            ] {
                let note = tenant.event(object, reason, kind, words).await?;
                println!("    {reason}: {note}");
            }
        }
        anyhow::Ok(())
    })?;
    for (object, reasons) in [
        ("gatewayrouter/gateway-a-v4", &["SessionUp", "SessionDown", "BfdDown"][..]),
        ("gateway/sllb-a", &["VipAnnounced", "VipWithdrawn"]),
    ] {
        let shown = stage.kubectl(&["describe", object])?;
        for reason in reasons {
            ensure!(shown.contains(reason), "kubectl describe {object} shows no {reason}: {shown}");
        }
    }
    // Two of one address: the second by name is refused, and says so once.
    run.block_on(async {
        tenant.put(play::router("gateway-twice", "169.254.100.150")).await?;
        let told = tenant.condition("GatewayRouter", "gateway-twice", "Accepted", "False", "Conflict").await?;
        let note = tenant.event("gateway-twice", "ConfigRejected", "Warning", &[&told]).await?;
        println!("    ConfigRejected: {note}");
        anyhow::Ok(())
    })?;
    stage.kubectl(&["delete", "gatewayrouter", "gateway-twice"]).map(drop)
}

/// A router and a load balancer beside the Pods, each with the Role `base` of its own user and nothing else.
fn router_and_lb_run_under_base_alone(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    let (tenant, cluster) = (&stage.tenant, stage.tenant.cluster);
    let lab = cluster.lab();
    run.block_on(async {
        tenant.bind_to("martlet-router-base", "router").await?;
        tenant.bind_to("martlet-lb-base", "lb").await
    })?;
    let pod = lab.namespace("base")?;
    cluster.attach(&pod, "base", 30_000)?;
    for (interface, bridge, port, addresses) in [
        ("vlan-100", "vlan100", "base-0", ["169.254.100.99/24", "100:100::99/64"]),
        ("net1", "internal", "base-1", ["169.111.100.99/24", "fd00:111:100::99/64"]),
    ] {
        lab.link((&pod, interface), (&stage.outside.fabric, port))?;
        stage.outside.fabric.ip(&format!("link set {port} master {bridge}"))?;
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            pod.ip(&format!("addr add {address} dev {interface}{nodad}"))?;
        }
    }
    for (name, value) in SYSCTLS.iter().chain(&MORE_SYSCTLS) {
        pod.sysctl(name, value)?;
    }
    let dir = lab.dir().join("base");
    std::fs::create_dir(&dir)?;
    let martlet = martlet_lab::demo::topology::find_martlet()?;
    let socket = format!("unix://{}/lb.sock", dir.display());
    let start = |part: &str| {
        let kubeconfig = dir.join(format!("{part}.kubeconfig"));
        std::fs::write(&kubeconfig, cluster.kubeconfig_of(part))?;
        let mut command = Command::new(&martlet);
        command
            .args([part, "--gateway", "sllb-a", "--namespace", &tenant.namespace, "--drain", "1"])
            .arg("--control-socket")
            .arg(dir.join(format!("{part}-control.sock")))
            .env("NFE_LB_SOCKET", &socket)
            .env("KUBECONFIG", &kubeconfig)
            .env("MARTLET_POD_NAME", "base")
            .env("MARTLET_POD_UID", "0");
        lab.spawn(&format!("base-{part}"), Some(&pod), command)
    };
    let (lb, router) = (start("lb")?, start("router")?);
    // VIPs come from the addresses of the Gateway: all that the seed asks works.
    let served = stage.outside.expect_next_hops(3).and_then(|()| stage.outside.ask(10).map(drop));
    // Long enough for another try of what may not be read.
    std::thread::sleep(Duration::from_secs(3));
    for process in [&router, &lb] {
        process.signal(Signal::Term)?;
    }
    for process in [&router, &lb] {
        process.wait(Duration::from_secs(20))?;
    }
    served.with_context(|| format!("{}\n{}", router.tail(20), lb.tail(20)))?;
    for (process, missing) in
        [(&router, &["GatewayClass", "L34Route", "RouterState base: not written"][..]), (&lb, &["GatewayClass"][..])]
    {
        let log = process.log();
        let is_of_rights = |line: &&str| {
            ["the cluster does not give this kind", "not written", "orbidden"].iter().any(|word| line.contains(word))
        };
        let lines: Vec<_> = log.lines().filter(is_of_rights).collect();
        ensure!(lines.len() == missing.len(), "{}: one line for each missing right, not {lines:#?}", process.name());
        for word in missing {
            ensure!(lines.iter().any(|line| line.contains(word)), "{}: no line of {word}: {lines:#?}", process.name());
        }
    }
    stage.outside.expect_next_hops(2)
}

fn no_change_of_vip_route_service_or_router_rolls_or_loses(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    let tenant = &stage.tenant;
    let uids = || -> Result<Vec<_>> {
        let pods = run.block_on(stage.balancers())?;
        Ok(pods.into_values().map(|pod| pod["metadata"]["uid"].clone()).collect())
    };
    let template = || -> Result<Value> {
        let deployment = run.block_on(tenant.get("Deployment", "sllbr-sllb-a"))?;
        Ok(json!([deployment["spec"]["template"], deployment["metadata"]["generation"]]))
    };
    let before = (uids()?, template()?);
    let put = |object: Value| run.block_on(tenant.put(object));
    let learned = |vip: &str, wanted: usize| {
        let vip: IpNet = vip.parse()?;
        until(&format!("{wanted} next hops of {vip}"), LIMIT, || {
            let count = stage.outside.frr.learned()?.get(&vip).map_or(0, Vec::len);
            Ok(if count == wanted { Seen::Yes(()) } else { Seen::not_yet(count.to_string()) })
        })
    };
    stage.without_loss("a VIP comes and goes", || {
        let more = |vips: &[&str]| {
            let mut route = play::route("vip-more", "service-a", vips);
            route["spec"]["destinationPorts"] = json!(["5000"]);
            route
        };
        put(more(&["20.0.0.77/32"]))?;
        learned("20.0.0.77/32", 2)?;
        put(more(&["20.0.0.78/32"]))?;
        learned("20.0.0.77/32", 0)?;
        learned("20.0.0.78/32", 2)?;
        run.block_on(tenant.delete("L34Route", "meridio.experiment.gateway.api.poc/v1alpha1", "vip-more"))?;
        learned("20.0.0.78/32", 0)
    })?;
    stage.without_loss("a route changes", || {
        let patch = |ports: &str| stage.kubectl(&["patch", "l34route", "vip-20-0-0-1", "--type=merge", "-p", ports]);
        patch(r#"{"spec":{"destinationPorts":["4000","4001","4002"],"priority":20}}"#)?;
        pause_for_effect();
        patch(r#"{"spec":{"destinationPorts":["4000","4001"],"priority":10}}"#)?;
        pause_for_effect();
        Ok(())
    })?;
    stage.without_loss("a Service changes, another comes and goes", || {
        stage.kubectl(&["label", "service", "service-a", "example.com/team=blue"])?;
        stage.kubectl(&[
            "patch",
            "service",
            "service-a",
            "--type=merge",
            "-p",
            r#"{"spec":{"ports":[{"port":4000}]}}"#,
        ])?;
        put(play::service("service-other", "sllb-a"))?;
        pause_for_effect();
        stage.kubectl(&["delete", "service", "service-other"])?;
        pause_for_effect();
        Ok(())
    })?;
    // A table of another size has other owners: a flow that lives at that moment may move, and is reset. A new one always finds one.
    let ((), good, bad) = under_traffic(stage.outside, || {
        for limit in ["meridio-experiment/service-max-endpoints=1000", "meridio-experiment/service-max-endpoints-"] {
            stage.kubectl(&["annotate", "service", "service-a", "--overwrite", limit])?;
            pause_for_effect();
        }
        Ok(())
    })?;
    println!("    a table grows and shrinks: {good} rounds went well, {} were moved", bad.len());
    // In the middle of a question, or of the handshake before it.
    let was_moved = |why: &String| why.ends_with("and then: Reset") || why.contains("reset by peer");
    ensure!(good > 0 && bad.iter().all(was_moved), "of {good} rounds: {bad:#?}");
    stage.without_loss("a GatewayRouter changes, another comes and goes", || {
        let patch = |text: &str| stage.kubectl(&["patch", "gatewayrouter", "gateway-a-v4", "--type=merge", "-p", text]);
        patch(r#"{"spec":{"bgp":{"bfd":{"multiplier":6,"minTx":"400ms"}},"description":"by another name"}}"#)?;
        put(play::router("gateway-nobody", "169.254.100.201"))?;
        pause_for_effect();
        stage.kubectl(&["delete", "gatewayrouter", "gateway-nobody"])?;
        patch(r#"{"spec":{"bgp":{"bfd":{"multiplier":5,"minTx":"300ms"}},"description":null}}"#)?;
        pause_for_effect();
        Ok(())
    })?;
    stage.kubectl(&["scale", "deployment", "target", "--replicas", "2"])?;
    run.block_on(objects::wait_for("the endpoints of two pods", LIMIT, async || {
        Ok((tenant.endpoints().await?.len() == 4).then_some(()))
    }))?;
    ensure!(stage.outside.ask(20)?.len() == 2, "two applications answer");
    ensure!(before == (uids()?, template()?), "pods were rolled: {before:?} {:?}", uids()?);
    Ok(())
}

/// What a change does, it does within this time.
fn pause_for_effect() {
    std::thread::sleep(Duration::from_millis(1500));
}

fn forty_vips_are_all_announced(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    let tenant = &stage.tenant;
    let vips: Vec<_> = (101..=140).map(|n| format!("20.0.0.{n}/32")).collect();
    let route = play::route("vip-many", "service-a", &vips.iter().map(String::as_str).collect::<Vec<_>>());
    run.block_on(tenant.put(route))?;
    let wanted: BTreeSet<IpNet> = vips.iter().map(|vip| vip.parse()).collect::<Result<_, _>>()?;
    until("forty VIPs with two next hops each", LIMIT, || {
        let learned = stage.outside.frr.learned()?;
        let count = wanted.iter().filter(|vip| learned.get(*vip).is_some_and(|hops| hops.len() == 2)).count();
        Ok(if count == 40 { Seen::Yes(()) } else { Seen::not_yet(count.to_string()) })
    })?;
    run.block_on(tenant.condition("Gateway", "sllb-a", "AddressesTruncated", "True", "TooManyAddresses"))?;
    run.block_on(tenant.delete("L34Route", "meridio.experiment.gateway.api.poc/v1alpha1", "vip-many"))?;
    until("forty VIPs to be withdrawn", LIMIT, || {
        let learned = stage.outside.frr.learned()?;
        let count = wanted.iter().filter(|vip| learned.contains_key(*vip)).count();
        Ok(if count == 0 { Seen::Yes(()) } else { Seen::not_yet(count.to_string()) })
    })
}

/// A `GatewayRouter` that names a Secret: not tried without it, tried as soon as the Secret is there.
fn a_password_is_watched_and_a_session_waits_for_it(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    let tenant = &stage.tenant;
    let mut router = play::router("gateway-secret", "169.254.100.202");
    router["spec"]["bgp"]["auth"] = json!({"keyName": "md5", "keySource": "bgp-keys"});
    run.block_on(tenant.put(router))?;
    let told = |word: &'static str| {
        objects::wait_for("what the pods say of the password", LIMIT, async move || {
            let states = tenant.list("RouterState").await?;
            let mut errors = states.iter().map(|state| {
                let sessions = state.data["spec"]["sessions"].as_array();
                let session = sessions.into_iter().flatten().find(|session| session["router"] == "gateway-secret");
                session.map(|session| format!("{} {}", session["state"], session["lastError"])).unwrap_or_default()
            });
            Ok((states.len() == 2 && errors.all(|error| error.contains(word))).then_some(()))
        })
    };
    run.block_on(told("is not known"))?;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bgp-keys"}, "stringData": {"md5": "martlet"}});
    run.block_on(tenant.put(secret))?;
    // Nobody is there: that it is tried is seen by its state.
    run.block_on(objects::wait_for("the session to be tried", LIMIT, async || {
        let states = tenant.list("RouterState").await?;
        let tried = |state: &kube::api::DynamicObject| {
            let sessions = state.data["spec"]["sessions"].as_array();
            sessions
                .into_iter()
                .flatten()
                .any(|session| session["router"] == "gateway-secret" && session["state"] != "NotTried")
        };
        Ok((states.len() == 2 && states.iter().all(tried)).then_some(()))
    }))?;
    stage.kubectl(&["delete", "gatewayrouter", "gateway-secret"]).map(drop)
}

/// MD5 on both sides, then another key on both sides: the sessions come back with it, and the columns tell.
fn a_password_is_rolled_and_the_sessions_follow(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    let at_gateway = |line: &str| stage.outside.frr.configure(&["router bgp 4248829953", line]);
    let secret = |key: &str| {
        run.block_on(stage.tenant.put(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "roll"},
                                             "stringData": {"md5": key}})))
    };
    let auth = |patch: &str| {
        let patch = format!(r#"{{"spec":{{"bgp":{{"auth":{patch}}}}}}}"#);
        for router in ["gateway-a-v4", "gateway-a-v6"] {
            stage.kubectl(&["patch", "gatewayrouter", router, "--type=merge", "-p", &patch])?;
        }
        anyhow::Ok(())
    };
    let columns = |wanted: &str| {
        let what = format!("{wanted} in the columns of both GatewayRouters");
        run.block_on(objects::wait_for(&what, LIMIT, async || {
            let shown = stage.kubectl(&["get", "gatewayrouters"])?;
            Ok((shown.matches(wanted).count() == 2).then_some(()))
        }))
    };
    // Each change ends every session: what was Established before it says nothing about the new key.
    let change = |what: &str, make: &dyn Fn() -> Result<()>| {
        let start = Instant::now();
        let before = stage.outside.sessions()?;
        make()?;
        stage.outside.expect_new_sessions(&before, 4)?;
        columns("2/2 Established")?;
        stage.outside.ask(5)?;
        println!("    {what}: {:.1} s until all was calm", start.elapsed().as_secs_f32());
        anyhow::Ok(())
    };
    change("sessions with a key", &|| {
        at_gateway("neighbor LB password first")?;
        secret("first")?;
        auth(r#"{"keyName":"md5","keySource":"roll"}"#)
    })?;
    // The gateway has the new key only, so what is Established uses it.
    change("with the new key after the roll", &|| {
        at_gateway("neighbor LB password second")?;
        secret("second")
    })?;
    change("without a key again", &|| {
        at_gateway("no neighbor LB password")?;
        auth("null")?;
        stage.kubectl(&["delete", "secret", "roll"]).map(drop)
    })?;
    run.block_on(stage.settled(2))
}

fn pods_scale_without_loss(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    for replicas in [4, 1, 2] {
        stage.without_loss(&format!("scaled to {replicas}"), || {
            stage.kubectl(&["scale", "deployment", "sllbr-sllb-a", "--replicas", &replicas.to_string()])?;
            run.block_on(stage.settled(replicas))
        })?;
    }
    Ok(())
}

/// Never fewer next hops than replicas - 1, and no round of questions is lost.
fn a_rolling_update_loses_nothing(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    let old: BTreeSet<_> = run.block_on(stage.balancers())?.into_keys().collect();
    let fewest = AtomicUsize::new(usize::MAX);
    stage.without_loss("rolling update", || {
        stage.kubectl(&["annotate", "gateway", "sllb-a", "--overwrite", "note=rolls-nothing"])?;
        // Sysctls by securityContext instead of an attachment: the template changes, the pods are rolled.
        run.block_on(stage.control("two", Sysctls::Pod))?;
        until("the rolling update", LIMIT, || {
            let hops = stage.outside.next_hops()?.values().copied().min().unwrap_or(0);
            fewest.fetch_min(hops, Ordering::Relaxed);
            let pods = run.block_on(stage.balancers())?;
            let rolled = pods.len() == 2 && pods.keys().all(|name| !old.contains(name)) && pods.values().all(is_ready);
            Ok(if rolled && hops == 2 { Seen::Yes(()) } else { Seen::not_yet(format!("{:?} {hops}", pods.keys())) })
        })?;
        run.block_on(stage.settled(2))
    })?;
    let fewest = fewest.into_inner();
    ensure!(fewest >= 1, "never fewer next hops than replicas - 1, but {fewest}");
    let deployment = run.block_on(stage.tenant.get("Deployment", "sllbr-sllb-a"))?;
    let sysctls = deployment["spec"]["template"]["spec"]["securityContext"]["sysctls"].as_array().map_or(0, Vec::len);
    ensure!(sysctls == SYSCTLS.len() + MORE_SYSCTLS.len(), "{sysctls} sysctls in the security context");
    sysctls_are_set(stage, run)
}

/// The server dies in the middle of a rolling update: nothing is withdrawn, packets go on, probes fail; then it goes on.
fn while_the_api_server_is_away_everything_goes_on(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    let cluster = stage.tenant.cluster;
    let old = run.block_on(stage.balancers())?;
    let address = |pod: &Value, port: u16| -> Result<SocketAddr> {
        Ok(SocketAddr::new(pod["status"]["podIP"].as_str().context("no podIP")?.parse()?, port))
    };
    let serving = |probes: &[SocketAddr], wanted: bool| {
        run.block_on(objects::wait_for(&format!("Readiness to be {wanted} of both containers"), LIMIT, async || {
            for probe in probes {
                if play::serves(probe, "Readiness").await? != wanted {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        }))
    };
    stage.without_loss("API server away during a rolling update", || {
        let patch = r#"{"spec":{"infrastructure":{"labels":{"round":"two"}}}}"#;
        stage.kubectl(&["patch", "gateway", "sllb-a", "--type=merge", "-p", patch])?;
        // In its middle: the first new pod is announced.
        stage.outside.expect_next_hops(3)?;
        let pods = run.block_on(stage.balancers())?;
        // An old one may be on its way out already.
        let new = pods.iter().find(|(name, pod)| !old.contains_key(*name) && pod["status"]["podIP"].is_string());
        let new = new.context("no new pod")?.1;
        let probes = [address(new, 2225)?, address(new, 2227)?];
        serving(&probes, true)?;
        cluster.kill_server()?;
        let start = Instant::now();
        serving(&probes, false)?;
        println!("    probes of router and lb fail {:.1} s after the server died", start.elapsed().as_secs_f32());
        while start.elapsed() < Duration::from_secs(5) {
            let hops = stage.outside.next_hops()?;
            ensure!(hops.values().all(|count| *count >= 2), "withdrawn while the API server was away: {hops:?}");
            for probe in &probes {
                // What a liveness probe asks: a kubelet must not restart them.
                ensure!(run.block_on(play::serves(probe, ""))?, "{probe} is not alive");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        cluster.restart_server()?;
        run.block_on(cluster.ready())?;
        serving(&probes, true)?;
        // kube-controller-manager backs off: it may take its time.
        run.block_on(objects::wait_for("the rest of the update", 2 * LIMIT, async || {
            let pods = stage.balancers().await?;
            let new = |pod: &Value| pod["metadata"]["labels"]["round"] == "two" && is_ready(pod);
            Ok((pods.len() == 2 && pods.values().all(new)).then_some(()))
        }))?;
        run.block_on(stage.settled(2))
    })
}

/// A load balancer without the way to its endpoints: told on the Gateway with pod and subnet, and nothing announced.
fn a_pod_without_an_internal_address_is_named(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    let networks = |value: &str| {
        let patch =
            json!({"spec": {"infrastructure": {"annotations": {"k8s.v1.cni.cncf.io/networks": value}}}}).to_string();
        stage.kubectl(&["patch", "gateway", "sllb-a", "--type=merge", "-p", &patch])
    };
    networks(r#"[{"name":"vlan-100","interface":"vlan-100"}]"#)?;
    let message =
        run.block_on(stage.tenant.condition("Gateway", "sllb-a", "PodsAttached", "False", "AddressMissing"))?;
    ensure!(message.contains("sllbr-sllb-a-") && message.contains("169.111.100.0/24"), "{message}");
    // However good its sessions are: it is not ready, and its gates say why.
    run.block_on(async {
        let name = message.split_whitespace().nth(1).unwrap_or_default().to_owned();
        let shut = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let gates: Vec<_> =
                conditions.filter(|c| c["type"].as_str().is_some_and(|kind| kind.ends_with("-connectivity"))).collect();
            let told = |gate: &&Value| {
                let says = gate["message"].as_str().is_some_and(|text| text.contains("169.111.100.0/24"));
                gate["status"] == "False" && gate["reason"] == "AddressMissing" && says
            };
            gates.len() == 2 && gates.iter().all(told) && !is_ready(pod)
        };
        stage.tenant.expect("Pod", &name, "both gates shut for want of an address", shut).await?;
        stage.tenant.event("sllb-a", "NotAttached", "Warning", &[&name, "169.111.100.0/24"]).await
    })?;
    run.block_on(objects::wait_for("the new pod's sessions, without a VIP", LIMIT, async || {
        let name = message.split_whitespace().nth(1).unwrap_or_default();
        let told = stage.tenant.get("RouterState", name).await?;
        let up = told["spec"]["ipv4Connectivity"] == true && told["spec"]["ipv6Connectivity"] == true;
        let vips = told["spec"]["vips"].as_array().cloned().unwrap_or_default();
        Ok((up && vips.len() == 2 && vips.iter().all(|vip| vip["announced"] == false)).then_some(()))
    }))?;
    let learned = stage.outside.next_hops()?;
    ensure!(learned.values().all(|count| *count <= 2), "{learned:?}");
    networks(r#"[{"name":"vlan-100","interface":"vlan-100"},{"name":"macvlan-nad-1","interface":"net1"}]"#)?;
    run.block_on(stage.settled(2))
}

fn the_end_of_a_gateway_withdraws_and_cleans(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    let gateway = run.block_on(stage.tenant.get("Gateway", "sllb-a"))?;
    stage.kubectl(&["delete", "gateway", "sllb-a"])?;
    stage.outside.expect_next_hops(0)?;
    run.block_on(objects::wait_for("Deployment, pods, states and slices to be gone", LIMIT, async || {
        let tenant = &stage.tenant;
        let deployments = tenant.list("Deployment").await?.len();
        let (states, pods) = (tenant.list("RouterState").await?.len(), stage.balancers().await?.len());
        Ok((deployments == 1 && tenant.slices().await?.is_empty() && states == 0 && pods == 0).then_some(()))
    }))?;
    // It comes back as it was.
    let again = json!({"apiVersion": gateway["apiVersion"], "kind": "Gateway", "metadata": {"name": "sllb-a"},
                       "spec": gateway["spec"]});
    run.block_on(stage.tenant.put(again))?;
    run.block_on(stage.settled(2))?;
    stage.outside.ask(5).map(drop)
}

fn the_end_of_a_namespace_withdraws_and_cleans(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    stage.tenant.cluster.kubectl(&["delete", "namespace", &stage.tenant.namespace, "--wait=false"])?;
    stage.outside.expect_next_hops(0)?;
    run.block_on(objects::wait_for("the namespace to be gone", LIMIT, async || {
        let left = stage.tenant.cluster.kubectl(&["get", "namespaces", "-o", "name"])?;
        Ok((!left.contains(&stage.tenant.namespace)).then_some(()))
    }))
}

/// What the seed asks of the pod's namespace, read back in each pod.
fn sysctls_are_set(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    for (name, pod) in run.block_on(stage.balancers())? {
        let namespace = pod["metadata"]["annotations"]["lab/namespace"].as_str().context("no namespace")?;
        for (key, wanted) in SYSCTLS.iter().chain(&MORE_SYSCTLS) {
            let output = Command::new("ip").args(["netns", "exec", namespace, "sysctl", "-n", key]).output()?;
            let set = String::from_utf8_lossy(&output.stdout).replace('\t', " ");
            ensure!(set.trim() == *wanted, "{key} is {set:?} in {name}, must be {wanted}");
        }
    }
    Ok(())
}

/// Router and lb are of the image's user and hold what they are granted, no more.
fn nobody_is_root(stage: &Stage<'_, '_>, run: &Handle) -> Result<()> {
    for (name, pod) in run.block_on(stage.balancers())? {
        let namespace = pod["metadata"]["annotations"]["lab/namespace"].as_str().context("no namespace")?;
        let output = Command::new("ip").args(["netns", "pids", namespace]).output()?;
        let mut held = BTreeSet::new();
        for process in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
            ensure!(status.contains("\nUid:\t65532\t65532\t65532"), "process {process} of {name}: {status}");
            held.extend(status.lines().filter_map(|line| line.strip_prefix("CapBnd:\t")).map(str::to_owned));
        }
        // The router: CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW (bits 10, 12, 13). The lb: CAP_NET_ADMIN.
        ensure!(held == ["0000000000001000", "0000000000003400"].map(str::to_owned).into(), "{name}: {held:?}");
    }
    Ok(())
}
