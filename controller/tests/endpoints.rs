//! The slices of a Service, as plays of Pods that come, change and go.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use martlet_api::crd::MAX_ENDPOINTS_ANNOTATION as MAX_ENDPOINTS;
use martlet_controller::endpoints::{Endpoints, endpoint_slices};
use martlet_controller::networks::{NETWORKS, Networks, STATUS, SUBNETS};
use proptest::prelude::*;
use serde_json::json;

fn networks() -> Networks {
    let annotations = [
        (NETWORKS.to_owned(), r#"[{"name":"nad-1","interface":"net1"}]"#.to_owned()),
        (SUBNETS.to_owned(), r#"["10.0.0.0/16","fd00::/64"]"#.to_owned()),
    ];
    Networks::parse(&annotations.into(), "ns").unwrap()
}

fn service(annotations: &[(&str, &str)]) -> Service {
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    serde_json::from_value(json!({
        "metadata": {"name": "service-a", "namespace": "ns", "uid": "s-1", "annotations": annotations,
                     "labels": {"service.kubernetes.io/service-proxy-name": "sllb-a"}},
        "spec": {"clusterIP": "None",
                 "selector": {"app": "target", "meridio-experiment/dummy-service-selector": "true"}},
    }))
    .unwrap()
}

/// The pod number `n`, made at second `n`, with an address of each family.
fn pod(n: u16, ready: bool, terminating: bool) -> Pod {
    let status = json!([{"name": "ns/nad-1", "interface": "net1",
                         "ips": [format!("10.0.{}.{}", n / 250, n % 250 + 1), format!("fd00::{n:x}")]}]);
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": format!("pod-{n:03}"), "namespace": "ns", "uid": format!("p-{n}"),
                     "creationTimestamp": format!("2026-01-01T00:{:02}:{:02}Z", n / 60, n % 60),
                     "labels": {"app": "target"}, "annotations": {STATUS: status.to_string()}},
        "spec": {"nodeName": "node", "containers": []},
        "status": {"phase": "Running",
                   "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    }))
    .unwrap();
    if terminating {
        pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
    }
    pod
}

fn slices(service: &Service, pods: &[Pod], existing: &BTreeMap<String, EndpointSlice>, per_slice: usize) -> Endpoints {
    let existing: Vec<_> = existing.values().collect();
    endpoint_slices(service, "sllb-a", pods, Some(&networks()), &existing, per_slice)
}

/// Pod name -> address -> identifier.
fn identifiers(slices: &BTreeMap<String, EndpointSlice>) -> BTreeMap<String, BTreeMap<String, u32>> {
    let mut found = BTreeMap::<_, BTreeMap<_, _>>::new();
    for endpoint in slices.values().flat_map(|slice| &slice.endpoints) {
        let pod = endpoint.target_ref.as_ref().unwrap().name.clone().unwrap();
        let identifier = endpoint.zone.as_ref().unwrap().parse().unwrap();
        found.entry(pod).or_default().insert(endpoint.addresses[0].clone(), identifier);
    }
    found
}

fn identifier(slices: &BTreeMap<String, EndpointSlice>, n: u16) -> Option<u32> {
    let of_pod = identifiers(slices).remove(&format!("pod-{n:03}"))?;
    let distinct: BTreeSet<_> = of_pod.values().copied().collect();
    assert_eq!(distinct.len(), 1, "both families have one identifier: {of_pod:?}");
    distinct.first().copied()
}

#[test]
fn a_pod_has_one_identifier_in_both_families() {
    let made = slices(&service(&[]), &[pod(1, true, false)], &BTreeMap::new(), 100).slices;
    assert_eq!(made.keys().collect::<Vec<_>>(), ["service-a-ipv4-0", "service-a-ipv6-0"]);
    assert_eq!(identifiers(&made)["pod-001"].len(), 2);
    assert_eq!(identifier(&made, 1), Some(0));
}

#[test]
fn a_slice_belongs_to_its_service_and_names_the_gateway() {
    let made = slices(&service(&[]), &[pod(1, true, false)], &BTreeMap::new(), 100).slices;
    let slice = serde_json::to_value(&made["service-a-ipv4-0"]).unwrap();
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "service-a");
    assert_eq!(slice["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"], "sllb-a");
    assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], "s-1");
    assert_eq!(slice["addressType"], "IPv4");
}

#[test]
fn who_stays_keeps_its_identifier_and_who_comes_takes_the_lowest_free() {
    let service = service(&[]);
    let three = [pod(1, true, false), pod(2, true, false), pod(3, true, false)];
    let first = slices(&service, &three, &BTreeMap::new(), 100).slices;
    let without_two = [three[0].clone(), three[2].clone()];
    let second = slices(&service, &without_two, &first, 100).slices;
    assert_eq!((identifier(&second, 1), identifier(&second, 3)), (Some(0), Some(2)));
    let with_four = [three[0].clone(), three[2].clone(), pod(4, true, false), pod(5, true, false)];
    let third = slices(&service, &with_four, &second, 100).slices;
    assert_eq!(identifier(&third, 4), Some(1));
    assert_eq!(identifier(&third, 5), Some(3));
}

#[test]
fn ready_serving_and_terminating_tell_the_pod() {
    let pods = [pod(1, true, false), pod(2, false, false), pod(3, true, true), pod(4, false, true)];
    let before = [pod(1, true, false), pod(2, true, false), pod(3, true, false), pod(4, true, false)];
    let existing = slices(&service(&[]), &before, &BTreeMap::new(), 100).slices;
    let made = slices(&service(&[]), &pods, &existing, 100).slices;
    let seen: Vec<_> = made["service-a-ipv4-0"]
        .endpoints
        .iter()
        .map(|endpoint| endpoint.conditions.clone().unwrap())
        .map(|c| (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap()))
        .collect();
    assert_eq!(seen, [(true, true, false), (false, false, false), (false, true, true), (false, false, true)]);
}

#[test]
fn beyond_the_capacity_the_youngest_are_left_out_and_named() {
    let service = service(&[(MAX_ENDPOINTS, "2")]);
    let pods = [pod(3, true, false), pod(1, true, false), pod(2, true, false)];
    let made = slices(&service, &pods, &BTreeMap::new(), 100);
    assert_eq!(made.over_capacity, BTreeSet::from(["pod-003".to_owned()]));
    assert_eq!(identifiers(&made.slices).keys().collect::<Vec<_>>(), ["pod-001", "pod-002"]);
    let after = slices(&service, &[pod(3, true, false), pod(1, true, false)], &made.slices, 100);
    assert_eq!((after.over_capacity.len(), identifier(&after.slices, 3)), (0, Some(1)));
}

#[test]
fn a_limit_that_is_no_number_is_told_and_the_default_holds() {
    for text in ["0", "-1", "many", "45001"] {
        let made = slices(&service(&[(MAX_ENDPOINTS, text)]), &[pod(1, true, false)], &BTreeMap::new(), 100);
        assert_eq!(made.bad_limit.as_deref(), Some(text));
        assert_eq!(identifier(&made.slices, 1), Some(0));
    }
}

#[test]
fn pods_that_are_finished_not_selected_or_not_attached_have_no_endpoint() {
    let mut finished = pod(1, true, false);
    finished.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
    let mut other = pod(2, true, false);
    other.metadata.labels = Some([("app".to_owned(), "other".to_owned())].into());
    let mut unattached = pod(3, true, false);
    unattached.metadata.annotations = None;
    let mut malformed = pod(4, true, false);
    malformed.metadata.annotations = Some([(STATUS.to_owned(), "{".to_owned())].into());
    let made = slices(&service(&[]), &[finished, other, unattached, malformed], &BTreeMap::new(), 100);
    assert!(made.slices.is_empty());
    assert_eq!(made.malformed.keys().collect::<Vec<_>>(), ["pod-004"]);
}

#[test]
fn while_the_annotations_of_the_gateway_are_broken_pods_keep_their_addresses() {
    let service = service(&[]);
    let two = [pod(1, true, false), pod(2, true, false)];
    let existing = slices(&service, &two, &BTreeMap::new(), 100).slices;
    let existing: Vec<_> = existing.values().collect();
    let pods = [pod(2, false, false), pod(3, true, false)];
    let made = endpoint_slices(&service, "sllb-a", &pods, None, &existing, 100).slices;
    assert_eq!(identifiers(&made).keys().collect::<Vec<_>>(), ["pod-002"], "gone pods go, new pods wait");
    assert_eq!(made["service-a-ipv4-0"].endpoints[0].conditions.as_ref().unwrap().ready, Some(false));
}

#[test]
fn a_service_without_a_selector_keeps_the_slices_that_others_wrote() {
    let mut service = service(&[]);
    let dummy = ("meridio-experiment/dummy-service-selector".to_owned(), "true".to_owned());
    service.spec.as_mut().unwrap().selector = Some([dummy].into());
    assert_eq!(slices(&service, &[pod(1, true, false)], &BTreeMap::new(), 100), Endpoints::default());
    service.spec.as_mut().unwrap().selector = None;
    assert_eq!(slices(&service, &[pod(1, true, false)], &BTreeMap::new(), 100), Endpoints::default());
}

#[test]
fn slices_split_and_a_change_touches_one_of_them() {
    let service = service(&[(MAX_ENDPOINTS, "1000")]);
    let mut pods: Vec<_> = (0..250).map(|n| pod(n, true, false)).collect();
    let made = slices(&service, &pods, &BTreeMap::new(), 100).slices;
    let sizes: Vec<_> = made.values().map(|slice| slice.endpoints.len()).collect();
    assert_eq!(sizes, [100, 100, 50, 100, 100, 50]);
    pods[120] = pod(120, false, false);
    let after = slices(&service, &pods, &made, 100).slices;
    let changed: Vec<_> = after.iter().filter(|(name, slice)| made[*name] != **slice).map(|(name, _)| name).collect();
    assert_eq!(changed, ["service-a-ipv4-1", "service-a-ipv6-1"]);
    // One leaves the first slice, one comes: it goes where there is room, no other slice is touched.
    pods[120] = pod(120, true, false);
    pods.remove(7);
    pods.push(pod(250, true, false));
    let after = slices(&service, &pods, &made, 100).slices;
    let changed: Vec<_> = after.iter().filter(|(name, slice)| made[*name] != **slice).map(|(name, _)| name).collect();
    assert_eq!(changed, ["service-a-ipv4-0", "service-a-ipv6-0"]);
}

#[test]
fn two_pods_with_one_identifier_are_told_apart() {
    let service = service(&[]);
    let two = [pod(1, true, false), pod(2, true, false)];
    let mut existing = slices(&service, &two, &BTreeMap::new(), 100).slices;
    for slice in existing.values_mut() {
        slice.endpoints[1].zone = Some("0".to_owned());
    }
    let made = slices(&service, &two, &existing, 100).slices;
    assert_eq!((identifier(&made, 1), identifier(&made, 2)), (Some(0), Some(1)), "the older keeps it");
}

/// A step of a play: which pods exist, which are ready, which are on their way out.
fn step() -> impl Strategy<Value = BTreeMap<u16, (bool, bool)>> {
    prop::collection::btree_map(0_u16..40, (any::<bool>(), prop::bool::weighted(0.2)), 0..30)
}

proptest! {
    #[test]
    fn whatever_happens_the_slices_stay_sound(
        steps in prop::collection::vec(step(), 1..8), limit in 1_u32..40, per_slice in 1_usize..9,
    ) {
        let service = service(&[(MAX_ENDPOINTS, &limit.to_string())]);
        let mut existing = BTreeMap::new();
        let mut before = BTreeMap::new();
        for step in steps {
            let pods: Vec<_> = step.iter().map(|(n, (ready, terminating))| pod(*n, *ready, *terminating)).collect();
            let made = slices(&service, &pods, &existing, per_slice);
            // Nothing is done twice.
            prop_assert_eq!(&slices(&service, &pods, &made.slices, per_slice).slices, &made.slices);
            for slice in made.slices.values() {
                prop_assert!(!slice.endpoints.is_empty() && slice.endpoints.len() <= per_slice);
            }
            let now: BTreeMap<_, _> = identifiers(&made.slices)
                .into_iter()
                .map(|(pod, addresses)| {
                    let distinct: BTreeSet<_> = addresses.values().copied().collect();
                    assert_eq!((addresses.len(), distinct.len()), (2, 1), "two families, one identifier");
                    (pod, *distinct.first().unwrap())
                })
                .collect();
            // Unique, below the limit, and kept by who was there before.
            let distinct: BTreeSet<_> = now.values().collect();
            prop_assert_eq!(distinct.len(), now.len());
            prop_assert!(now.values().all(|identifier| *identifier < limit));
            for (pod, identifier) in &now {
                prop_assert!(before.get(pod).is_none_or(|old| old == identifier), "{} changed its identifier", pod);
            }
            // Who is left out is left out because there is no room, or because it goes.
            for (n, (_, terminating)) in &step {
                let name = format!("pod-{n:03}");
                if !now.contains_key(&name) && !terminating {
                    prop_assert!(made.over_capacity.contains(&name));
                    prop_assert_eq!(now.len(), usize::try_from(limit).unwrap());
                }
            }
            before = now;
            existing = made.slices;
        }
    }
}
