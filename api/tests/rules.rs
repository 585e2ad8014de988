//! Each rule of a custom resource, an accepting and a refusing case: by the schema that an API server applies (structure and
//! CEL) and by our own parsers, which are what a folder has instead of a server.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use kube::CustomResourceExt;
use kube::core::cel::{CompiledSchema, Validator, compile_schema};
use martlet_api::crd::{GatewayRouter, L34Route};
use martlet_api::read::{self, Document};
use serde_json::{Value, json};

fn router() -> Value {
    json!({
        "apiVersion": "meridio.experiment.gateway.api.poc/v1alpha1", "kind": "GatewayRouter",
        "metadata": {"name": "gateway-a", "labels": {"service.kubernetes.io/service-proxy-name": "sllb-a"}},
        "spec": {"address": "169.254.100.150", "interface": "vlan-100", "bgp": {"bfd": {"switch": true}}},
    })
}

fn route() -> Value {
    json!({
        "apiVersion": "meridio.experiment.gateway.api.poc/v1alpha1", "kind": "L34Route", "metadata": {"name": "vip"},
        "spec": {
            "parentRefs": [{"name": "sllb-a"}], "backendRefs": [{"name": "service-a"}],
            "destinationCIDRs": ["20.0.0.1/32"], "protocols": ["TCP"],
        },
    })
}

/// The part of a server's structural check that our schemas use.
fn structure(schema: &Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    let mut refuse = |what: &str| faults.push(format!("{path}: {value} {what}"));
    let type_fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !type_fits {
        refuse("has another type");
        return;
    }
    if let Some(names) = schema["enum"].as_array()
        && !names.contains(value)
    {
        refuse("is no member");
    }
    let out = |number: f64| {
        schema["minimum"].as_f64().is_some_and(|least| number < least)
            || schema["maximum"].as_f64().is_some_and(|most| number > most)
    };
    if value.as_f64().is_some_and(out) {
        refuse("is out of range");
    }
    let mut bounds = |length: Option<usize>, least: &str, most: &str| {
        let Some(length) = length.map(|length| u64::try_from(length).unwrap()) else { return };
        if schema[least].as_u64().is_some_and(|least| length < least)
            || schema[most].as_u64().is_some_and(|most| length > most)
        {
            refuse("has a wrong length");
        }
    };
    bounds(value.as_str().map(|text| text.chars().count()), "minLength", "maxLength");
    bounds(value.as_array().map(Vec::len), "minItems", "maxItems");
    if let Some(object) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(name) {
                refuse(&format!("lacks {name}"));
            }
        }
        for (name, value) in object {
            structure(&schema["properties"][name], value, &format!("{path}.{name}"), faults);
        }
    }
    if let Some(items) = value.as_array() {
        for (place, value) in items.iter().enumerate() {
            structure(&schema["items"], value, &format!("{path}[{place}]"), faults);
        }
        let keys = schema["x-kubernetes-list-map-keys"].as_array();
        let key = |item: &Value| {
            keys.map(|keys| keys.iter().map(|key| item[key.as_str().unwrap()].clone()).collect::<Vec<_>>())
        };
        if keys.is_some()
            && items.iter().enumerate().any(|(place, item)| items[..place].iter().any(|other| key(other) == key(item)))
        {
            faults.push(format!("{path}: has an item twice"));
        }
    }
}

/// What a server would apply to a kind.
struct Server {
    schema: Value,
    rules: CompiledSchema,
}

impl Server {
    fn of<T: CustomResourceExt>() -> Self {
        let definition = T::crd();
        let schema = definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        let schema = serde_json::to_value(schema).unwrap();
        Self { rules: compile_schema(&schema), schema }
    }

    fn refuses(&self, object: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        structure(&self.schema["properties"]["spec"], &object["spec"], "spec", &mut faults);
        if let Err(errors) = Validator::new().validate_compiled(&self.rules, object, None) {
            faults.push(format!("{errors:?}"));
        }
        faults
    }
}

fn folder_refuses(object: &Value) -> Option<String> {
    match read::json(object.clone(), "default").remove(0) {
        Document::Read(_, _, unknown) if unknown.is_empty() => None,
        Document::Read(_, _, unknown) => Some(format!("unknown: {unknown:?}")),
        Document::Refused(_, why) => Some(why),
        Document::Foreign(kind) => Some(format!("foreign: {kind}")),
    }
}

/// Sets `spec.<field>` of the object; a field such as `bgp.bfd.minTx` makes what it needs.
fn with(mut object: Value, field: &str, value: Value) -> Value {
    let mut place = &mut object["spec"];
    for name in field.split('.') {
        if place.is_null() {
            *place = json!({});
        }
        place = &mut place[name];
    }
    *place = value;
    object
}

/// Both accept the good values, both refuse the bad ones; the folder's message names the field and what would be accepted.
fn check<T: CustomResourceExt>(base: &Value, field: &str, good: &[Value], bad: &[Value]) {
    let server = Server::of::<T>();
    for value in good {
        let object = with(base.clone(), field, value.clone());
        assert_eq!(server.refuses(&object), Vec::<String>::new(), "server, {field} = {value}");
        assert_eq!(folder_refuses(&object), None, "folder, {field} = {value}");
    }
    for value in bad {
        let object = with(base.clone(), field, value.clone());
        assert!(!server.refuses(&object).is_empty(), "server accepts {field} = {value}");
        let why = folder_refuses(&object).unwrap_or_else(|| panic!("folder accepts {field} = {value}"));
        let last = field.rsplit('.').next().unwrap();
        assert!(why.contains(last), "{why} names {last}");
        let teaches = ["must", "expected", "excludes", "missing field"].iter().any(|word| why.contains(word));
        assert!(teaches, "{field} = {value}: {why} says what would be accepted");
    }
}

/// `good` and `bad` are lists of values.
macro_rules! cases {
    ($kind:ty, $base:expr, $($name:ident: $field:literal, good $good:tt, bad $bad:tt;)*) => {
        $(#[test]
        fn $name() {
            let (good, bad) = (json!($good), json!($bad));
            check::<$kind>(&$base, $field, good.as_array().unwrap(), bad.as_array().unwrap());
        })*
    };
}

cases! { GatewayRouter, router(),
    address_is_unicast_of_either_family: "address",
        good ["10.0.0.1", "fe80::1", "100:100::150", "2001:db8:1:2:3:4:5:6"],
        bad ["10.0.0.256", "10.0.0", "10.0.0.1/24", "::1::", "gateway", "", "12345::1", 7];
    interface_is_a_name_that_linux_takes: "interface",
        good ["vlan-100", "eth0.100", "a"],
        bad ["", "a\"b", "a'b", "a b", "a/b", "a:b", ".", "..", "sixteen-letters-"];
    protocol_is_one_of_two: "protocol", good ["BGP"], bad ["bgp", "OSPF", "", "Static"];
    autonomous_systems_are_not_zero: "bgp.remoteASN",
        good [1, 65000, 4_248_829_953_u32, 4_294_967_295_u32], bad [0, -1, 23456, 4_294_967_296_u64, "8103"];
    our_autonomous_system_is_not_zero: "bgp.localASN", good [8103], bad [0, 4_294_967_296_u64];
    hold_time_is_zero_or_three_seconds_and_more: "bgp.holdTime",
        good ["24s", "0s", "3s", "65535s", "1m", "1h", "1h30m", "3000ms"],
        bad ["1s", "2s", "2999ms", "65536s", "19h", "1.5s", "3500ms", "24", "-3s", "", "soon"];
    local_port_is_a_port: "bgp.localPort", good [179, 10179, 1, 65535], bad [0, -1, 65536, "179"];
    remote_port_is_a_port: "bgp.remotePort", good [179, 65535], bad [0, 65536];
    transmit_interval_is_a_duration: "bgp.bfd.minTx",
        good ["300ms", "1m", "1h", "1.5s", "1ms", "10ms", "1s500ms"],
        bad ["0s", "999us", "2h", "300", "-1s", "1d", ""];
    receive_interval_is_a_duration: "bgp.bfd.minRx", good ["50ms"], bad ["0", "x"];
    echo_interval_is_a_duration: "bgp.bfd.echo", good ["50ms"], bad ["0s"];
    echo_receive_interval_is_a_duration: "bgp.bfd.echoReceive", good ["50ms"], bad ["0s", 50];
    unaffiliated_is_a_boolean: "bgp.bfd", good [{"unaffiliated": true, "echo": "50ms"}], bad [{"unaffiliated": true}, {"unaffiliated": "yes"}];
    multiplier_is_an_octet_but_not_zero: "bgp.bfd.multiplier", good [1, 3, 255], bad [0, 256, -1, "3"];
    the_switch_is_a_boolean: "bgp.bfd.switch", good [true, false], bad ["on", 1];
    bfd_hops_have_a_ttl: "bgp.bfd.multihop", good [{"ttl": 254}, {}], bad [{"ttl": 0}, {"ttl": 256}];
    bfd_authentication_has_a_key: "bgp.bfd.authentication",
        good [
            {"type": "MeticulousKeyedSHA1", "keyID": 7, "keySource": "secret", "keyName": "key"},
            {"type": "KeyedMD5", "keyID": 7, "keySource": "secret", "keyName": "key",
             "accept": [{"keyID": 8, "keySource": "secret", "keyName": "next"}]},
        ],
        bad [
            {"type": "KeyedMD5", "keyID": 7, "keySource": "secret", "keyName": "key", "accept": [{"keyID": 8}]},
            {"type": "MeticulousKeyedSHA1", "keyID": 256, "keySource": "secret", "keyName": "key"},
            {"type": "SHA1", "keyID": 1, "keySource": "secret", "keyName": "key"},
            {"type": "KeyedMD5", "keyID": 1, "keySource": "", "keyName": "key"},
        ];
    authentication_names_a_key_in_a_secret: "bgp.auth",
        good [{"keyName": "a", "keySource": "b"}], bad [{"keyName": "a"}, {"keyName": "", "keySource": "b"}];
    tcp_ao_has_ids_and_a_key: "bgp.tcpAo",
        good [{"sendID": 0, "receiveID": 255, "keyName": "a", "keySource": "b", "algorithm": "AES-128-CMAC-96"}],
        bad [
            {"sendID": 256, "receiveID": 255, "keyName": "a", "keySource": "b"},
            {"sendID": 1, "receiveID": 1, "keyName": "a", "keySource": "b", "algorithm": "MD5"},
        ];
    multihop_has_a_ttl: "bgp.multihop", good [{"ttl": 64}, {}], bad [{"ttl": 0}, {"ttl": 256}];
    source_address_is_of_the_same_family: "bgp.sourceAddress", good ["169.254.100.1"], bad ["fe80::1", "x"];
    connect_retry_is_a_duration: "bgp.connectRetry", good ["200ms", "5s"], bad ["1ms", "20h", "0s"];
    families_are_named: "bgp.families", good [["IPv4"], ["IPv4", "IPv6"]], bad [[], ["ipv4"]];
    communities_are_numbers_or_names: "bgp.communities",
        good [["65000:100", "no-export", "0:0"], []], bad [["65536:1"], ["1"], ["internet"], ["1:2:3"]];
    large_communities_are_three_numbers: "bgp.largeCommunities",
        good [["4248829953:1:2"]], bad [["1:2"], ["4294967296:1:2"], ["a:b:c"]];
    med_has_32_bits: "bgp.med", good [0, 4_294_967_295_u32], bad [-1, 4_294_967_296_u64];
    local_preference_has_32_bits: "bgp.localPreference", good [0, 200], bad [-1];
    the_path_is_prepended_a_few_times: "bgp.prepend", good [0, 3, 32], bad [-1, 33];
    import_is_the_default_route_or_prefixes: "bgp.import",
        good [{"defaultOnly": true}, {"prefixes": [{"prefix": "10.0.0.0/8", "minLength": 8, "maxLength": 24}]}, {"prefixes": [{"prefix": "::/0"}]}],
        bad [
            {}, {"defaultOnly": false}, {"defaultOnly": true, "prefixes": [{"prefix": "::/0"}]}, {"prefixes": []},
            {"prefixes": [{"prefix": "10.0.0.0"}]}, {"prefixes": [{"prefix": "10.0.0.0/33"}]},
            {"prefixes": [{"prefix": "::/0", "maxLength": 129}]},
            {"prefixes": [{"prefix": "10.0.0.0/8", "minLength": 24, "maxLength": 16}]},
        ];
    maximum_prefixes_has_a_limit: "bgp.maximumPrefixes",
        good [{"limit": 1000, "warningPercent": 80, "restartAfter": "5m"}, {"limit": 1}],
        bad [{"limit": 0}, {"limit": 10, "warningPercent": 101}, {"limit": 10, "restartAfter": "0s"}, {}];
    graceful_restart_has_a_time_of_12_bits: "bgp.gracefulRestart",
        good [{"restartTime": "120s"}, {"restartTime": "2m"}, {"restartTime": "4095s"}],
        bad [{"restartTime": "4096s"}, {"restartTime": "0s"}, {"restartTime": "1500ms"}, {}];
    a_last_resort_lasts_24_bits_of_seconds: "bgp.longLivedStaleTime",
        good ["1s", "1h", "16777215s"], bad ["0s", "500ms", "16777216s", "x"];
    several_paths_are_a_switch: "bgp.addPathReceive", good [true, false], bad ["yes", 1];
    a_family_given_up_is_a_switch: "bgp.disableFamilyOnError", good [true, false], bad ["yes", 1];
    roles_are_those_of_the_rfc: "bgp.role", good ["customer", "rs-client", "peer"], bad ["Customer", "transit"];
    shutdown_has_a_switch: "bgp.shutdown", good [{"switch": true, "message": "see you"}, {"switch": false}], bad [{"message": "x"}];
    ttl_security_excludes_multihop: "bgp",
        good [{"ttlSecurity": true}, {"ttlSecurity": false, "multihop": {}}], bad [{"ttlSecurity": true, "multihop": {}}];
    two_kinds_of_authentication_exclude_each_other: "bgp",
        good [{"auth": {"keyName": "a", "keySource": "b"}}],
        bad [{"auth": {"keyName": "a", "keySource": "b"}, "tcpAo": {"sendID": 1, "receiveID": 1, "keyName": "a", "keySource": "b"}}];
    description_is_not_a_book: "description", good ["to the left", ""], bad [7];
    static_excludes_bgp: "static", good [], bad [{}];
}

cases! { L34Route, route(),
    a_route_has_one_gateway: "parentRefs",
        good [[{"name": "sllb-a"}], [{"name": "a", "kind": "Gateway", "group": "gateway.networking.k8s.io", "sectionName": "all"}]],
        bad [[], [{"name": "a"}, {"name": "b"}], [{"name": ""}], [{}]];
    a_route_has_one_service: "backendRefs",
        good [[{"name": "a", "port": 1}], [{"name": "a", "weight": 1}]], bad [[], [{"name": "a"}, {"name": "b"}], [{"name": ""}]];
    priority_has_32_bits: "priority", good [0, 10, -1, 2_147_483_647], bad [2_147_483_648_u64, "10"];
    destinations_are_hosts_of_their_family: "destinationCIDRs",
        good [["20.0.0.1/32", "2000::1/128"]],
        bad [[], ["20.0.0.0/24"], ["20.0.0.1"], ["20.0.0.1/128"], ["2000::1/32"], ["2000::1/127"], ["x/32"], ["20.0.0.256/32"]];
    sources_are_prefixes: "sourceCIDRs",
        good [[], ["0.0.0.0/0", "::/0"], ["10.1.2.3/8"]], bad [["10.0.0.0"], ["10.0.0.0/33"], ["::/129"], ["any"]];
    source_ports_are_ports_ranges_or_any: "sourcePorts",
        good [[], ["any"], ["0-65535"], ["0"], ["65535"], ["1000-2000", "4000"]],
        bad [["65536"], ["2000-1000"], ["x"], [""], ["-1"], ["1-"], [" 1"], [4000]];
    destination_ports_are_ports_ranges_or_any: "destinationPorts",
        good [["4000", "4001"], ["any", "0"]], bad [["4000,4001"], [4000]];
    protocols_are_named_in_capitals: "protocols", good [["TCP"], ["TCP", "UDP", "SCTP"]], bad [[], ["tcp"], ["ICMP"]];
    byte_matches_name_octets: "byteMatches",
        good [["tcp[0:2] & 0xff00 = 0x1200"], ["tcp[20:4]=0xdeadbeef", "tcp[13 : 1] & 2 = 2"], []],
        bad [["tcp[0:3] = 1"], ["icmp[0:1] = 1"], ["tcp[0:1]"], ["udp[0:2] = 1"], ["tcp[70000:1] = 1"]];
    ports_are_translated_once_a_protocol: "destinationPortTranslation",
        good [[{"port": 80, "protocol": "TCP", "targetPort": 8080}, {"port": 80, "protocol": "UDP", "targetPort": 80}]],
        bad [
            [{"port": 0, "protocol": "TCP", "targetPort": 8080}], [{"port": 80, "protocol": "TCP", "targetPort": 65536}],
            [{"port": 80, "protocol": "TCP", "targetPort": 1}, {"port": 80, "protocol": "TCP", "targetPort": 2}],
        ];
    sctp_in_udp_needs_sctp: "sctpInUdpPort", good [], bad [9899];
}

#[test]
fn every_rule_compiles() {
    assert!(!Server::of::<GatewayRouter>().rules.has_errors());
    assert!(!Server::of::<L34Route>().rules.has_errors());
}

#[test]
fn sctp_in_udp_has_a_port() {
    let sctp = with(route(), "protocols", json!(["TCP", "SCTP"]));
    check::<L34Route>(&sctp, "sctpInUdpPort", &[json!(9899), json!(1)], &[json!(0), json!(65536)]);
}

#[test]
fn more_sources_than_nfqlb_can_hold_are_no_fault() {
    let many: Vec<String> = (0..200).map(|n| format!("10.0.{n}.0/24")).collect();
    check::<L34Route>(&route(), "sourceCIDRs", &[json!(many)], &[]);
    let too_many: Vec<String> = (0..1025).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
    check::<L34Route>(&route(), "sourceCIDRs", &[], &[json!(too_many)]);
}

#[test]
fn static_next_hops_need_no_protocol() {
    let mut object = with(router(), "bgp", Value::Null);
    object["spec"].as_object_mut().unwrap().remove("bgp");
    check::<GatewayRouter>(
        &object,
        "static",
        &[json!({}), json!({"bfd": {"switch": true, "multiplier": 3}})],
        &[json!({"bfd": {"multiplier": 0}})],
    );
    check::<GatewayRouter>(&object, "protocol", &[json!("Static"), json!("BGP")], &[]);
    let both = with(with(object, "static", json!({})), "protocol", json!("BGP"));
    assert!(!Server::of::<GatewayRouter>().refuses(&both).is_empty());
    assert!(folder_refuses(&both).unwrap().contains("protocol is BGP"));
}

#[test]
fn what_only_the_parser_knows_is_refused_by_the_folder() {
    for (field, value, word) in
        [("address", "0.0.0.0", "unicast"), ("address", "224.0.0.1", "unicast"), ("address", "ff02::1", "unicast")]
    {
        let why = folder_refuses(&with(router(), field, json!(value))).unwrap();
        assert!(why.contains(word) && why.contains(value), "{why}");
    }
    for (field, value) in [
        ("destinationCIDRs", json!(["127.0.0.1/32"])),
        ("byteMatches", json!(["tcp[1479:2] = 1"])),
        ("byteMatches", json!(["tcp[0:1] & 0x0f = 0xf0"])),
    ] {
        assert!(folder_refuses(&with(route(), field, value.clone())).is_some(), "{field} = {value}");
    }
}

#[test]
fn a_name_longer_than_60_characters_is_good() {
    let mut object = router();
    object["metadata"]["name"] = json!("gateway-".repeat(20) + "a");
    assert_eq!(folder_refuses(&object), None);
    object["metadata"]["name"] = json!("Gateway_A");
    assert!(folder_refuses(&object).unwrap().contains("metadata.name: `Gateway_A`"));
}

#[test]
fn a_field_that_nobody_knows_is_named() {
    let object = with(router(), "bgp.bfd.minTX", json!("10ms"));
    assert_eq!(folder_refuses(&object).unwrap(), "unknown: [\"spec.bgp.bfd.minTX\"]");
}
