//! Any packet of a queue: it is parsed, classified, held or answered, never a panic; an answer is itself a packet.
#![no_main]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Mutex;

use libfuzzer_sys::fuzz_target;
use martlet_api::Objects;
use martlet_api::accept::view;
use martlet_api::view::ObjectName;
use martlet_clock::Instant;
use martlet_lb::engine::Tables;
use martlet_lb::fragment::Fragments;
use martlet_lb::packet::parse;
use martlet_lb::targets::{Marks, Settings, targets};
use martlet_lb::verdict::{Queued, verdict};

/// The demo's objects: TCP and UDP routes of one VIP a family.
const OBJECTS: &[&str] = &[
    include_str!("../../../deploy/demo/endpoints-v4.yaml"),
    include_str!("../../../deploy/demo/endpoints-v6.yaml"),
    include_str!("../../../deploy/demo/gateway.yaml"),
    include_str!("../../../deploy/demo/routes.yaml"),
    include_str!("../../../deploy/demo/service.yaml"),
];

fn tables() -> std::sync::Arc<Tables> {
    let objects = Objects::from_yaml(&OBJECTS.join("\n---\n").replace("ready: false", "ready: true"), "default");
    let view = view(&objects, &ObjectName::new("default", "sllb-a"));
    assert!(!view.routes.is_empty() && !view.services.is_empty(), "the objects are not what they should be: {view:?}");
    let mut marks = Marks::default();
    let mut settings = Settings::default();
    settings.policy.reject = true;
    targets(&view, &BTreeMap::new(), &mut marks, &settings, &Tables::default()).tables
}

thread_local! {
    static TABLES: RefCell<Option<std::sync::Arc<Tables>>> = const { RefCell::new(None) };
}

fuzz_target!(|data: &[u8]| {
    let tables = TABLES.with(|kept| kept.borrow_mut().get_or_insert_with(tables).clone());
    let fragments = Mutex::new(Fragments::default());
    let now = Instant::from_millis(1_000);
    // Two packets, so that fragments meet: the first octet says where the second begins.
    let [cut, rest @ ..] = data else { return };
    let (first, second) = rest.split_at(usize::from(*cut).min(rest.len()));
    for (id, octets) in [(0, first), (1, second)] {
        let outcome = verdict(&tables, &fragments, || now, Queued { queue: 0, id, octets, gso: false });
        if let Some(answer) = outcome.answer {
            assert!(parse(&answer).is_ok(), "an answer that is no packet: {answer:02x?}");
        }
    }
});
