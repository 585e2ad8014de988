//! Every field that `deploy/examples/all-fields.yaml` shows of a `GatewayRouter` reaches what it steers.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use martlet_api::accept;
use martlet_api::view::ObjectName;
use martlet_bgp::{Bfd, Family, Import, NeighborId, Role};
use martlet_router::intent::{Intent, Settings};

fn intent() -> Intent {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/all-fields.yaml");
    let dir = std::env::temp_dir().join(format!("martlet-fields-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(examples, dir.join("all-fields.yaml")).unwrap();
    let (objects, _task) = martlet_api::source::folder(dir.clone(), "default");
    let objects = Arc::clone(&objects.borrow());
    std::fs::remove_dir_all(dir).unwrap();
    Intent::new(&accept::view(&objects, &ObjectName::new("default", "sllb-all")), &Settings::default())
}

#[tokio::test]
async fn every_field_of_a_gateway_router_is_in_force() {
    let intent = intent();
    let near = &intent.neighbors[&NeighborId::new("gateway-bgp")];
    let (config, transport) = (&near.config, &near.transport);
    assert_eq!(near.description.as_deref(), Some("The left one of the two in rack 7"));
    assert_eq!((transport.address.to_string().as_str(), &*transport.interface), ("169.254.100.150", "vlan-100"));
    assert_eq!((config.local_as, config.remote_as), (8103, Some(4_248_829_953)));
    assert_eq!((config.hold_time.seconds(), transport.local_port, transport.remote_port), (24, 10179, 10179));
    assert!(!config.passive && !transport.multihop);
    // ttlSecurity: GTSM sends and asks for 255.
    assert_eq!((transport.ttl, transport.min_ttl), (255, Some(255)));
    assert_eq!(transport.source, Some("169.254.100.1".parse().unwrap()));
    assert_eq!(config.connect_retry, Duration::from_millis(200));
    assert_eq!(config.families, BTreeSet::from([Family::Ipv4, Family::Ipv6]));
    let export = &config.export;
    assert_eq!((export.communities.len(), export.large_communities.len()), (2, 1));
    assert_eq!((export.med, export.local_preference, export.prepend), (Some(10), 200, 2));
    let Import::Prefixes(ranges) = &config.import else { panic!("{:?}", config.import) };
    let [range] = ranges.as_slice() else { panic!("{ranges:?}") };
    assert_eq!((range.prefix.to_string().as_str(), range.min_length, range.max_length), ("0.0.0.0/0", 0, 24));
    let limit = config.maximum_prefixes.as_ref().unwrap();
    let restart = Some(Duration::from_mins(5));
    assert_eq!((limit.maximum, limit.warning_percent, limit.restart_after), (10_000, 80, restart));
    assert_eq!((config.graceful_restart.restart_time_s, config.graceful_restart.restarting), (120, true));
    assert_eq!(config.role, Some(Role::Customer));
    assert!(transport.key.is_some());
    assert_eq!(config.shutdown, None, "its switch is off");
    assert_eq!(config.bfd, Bfd::Strict);
    let session = &intent.bfd[near.bfd.as_ref().unwrap()];
    assert_eq!((session.min_tx, session.min_rx), (Duration::from_millis(300), Duration::from_millis(300)));
    assert_eq!((session.multiplier, session.echo), (5, Some(Duration::from_millis(50))));
    assert!(session.auth.is_some());

    let far = &intent.neighbors[&NeighborId::new("gateway-far")];
    assert_eq!((far.transport.multihop, far.transport.ttl, far.transport.min_ttl), (true, 10, None));
    assert_eq!(far.config.import, Import::Default);
    let session = far.bfd.as_ref().unwrap();
    assert_eq!(session.interface, None, "BFD over several hops belongs to no interface");
    assert_eq!(intent.bfd[session].min_ttl, 255 - 10);

    let fixed = &intent.statics["gateway-static"];
    assert_eq!(fixed.address.to_string(), "169.254.100.151");
    assert_eq!(intent.bfd[fixed.bfd.as_ref().unwrap()].multiplier, 3);
}
