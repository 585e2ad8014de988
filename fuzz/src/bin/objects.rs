//! Any text as the objects of an operator, and as the messages of the readiness socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use martlet_api::Objects;
use martlet_api::accept::view;
use martlet_api::readiness::{Connectivity, Readiness};
use martlet_api::view::ObjectName;

fuzz_target!(|data: &[u8]| {
    let _ = serde_json::from_slice::<Readiness>(data);
    let _ = serde_json::from_slice::<Connectivity>(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let objects = Objects::from_yaml(text, "default");
    let once = view(&objects, &ObjectName::new("default", "g"));
    assert_eq!(once, view(&objects, &ObjectName::new("default", "g")), "what is accepted is a function");
});
