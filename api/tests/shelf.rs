//! What stays and what goes when the files of a folder change: plays on texts, without a file system.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use martlet_api::Objects;
use martlet_api::objects::Kind;
use martlet_api::source::Shelf;
use martlet_api::view::{Condition, ObjectName};
use proptest::prelude::*;

fn router(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: meridio.experiment.gateway.api.poc/v1alpha1\nkind: GatewayRouter\nmetadata:\n  name: {name}\nspec:\n  address: {address}\n"
    )
}

fn put(shelf: &mut Shelf, files: &[(&str, &str)]) {
    let texts: BTreeMap<_, _> = files.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned()))).collect();
    shelf.put(texts);
}

fn addresses(objects: &Objects) -> Vec<(&str, &str)> {
    objects.routers.iter().map(|(name, router)| (&*name.name, router.spec.address.as_str())).collect()
}

fn only(objects: &Objects) -> &Condition {
    assert_eq!(objects.conditions.len(), 1, "{:#?}", objects.conditions);
    objects.conditions.first().unwrap()
}

#[test]
fn a_file_with_broken_syntax_keeps_its_objects_until_it_is_mended() {
    let mut shelf = Shelf::new("default");
    put(&mut shelf, &[("a.yaml", &router("a", "10.0.0.1")), ("b.yaml", &router("b", "10.0.0.2"))]);
    put(&mut shelf, &[("a.yaml", "kind: [unclosed"), ("b.yaml", &router("b", "10.0.0.3"))]);
    assert_eq!(addresses(shelf.objects()), [("a", "10.0.0.1"), ("b", "10.0.0.3")], "the rest goes on");
    let told = only(shelf.objects());
    assert_eq!((&*told.kind, told.object.to_string().as_str()), ("File", "a.yaml"));
    assert!(told.message.contains("line 1") && told.message.contains("last good objects stay"), "{}", told.message);
    put(&mut shelf, &[("a.yaml", &router("a", "10.0.0.4")), ("b.yaml", "")]);
    assert_eq!(addresses(shelf.objects()), [("a", "10.0.0.4")]);
    assert!(shelf.objects().conditions.is_empty());
}

#[test]
fn a_broken_file_that_was_never_good_has_nothing() {
    let mut shelf = Shelf::new("default");
    put(&mut shelf, &[("a.yaml", "kind: 'unclosed")]);
    assert!(only(shelf.objects()).message.contains("nothing of it is used"));
    assert!(shelf.objects().synced);
}

#[test]
fn a_refused_object_keeps_its_last_good_value_until_it_is_mended_or_removed() {
    let mut shelf = Shelf::new("default");
    let good = router("a", "10.0.0.1");
    put(&mut shelf, &[("a.yaml", &(good.clone() + &router("b", "10.0.0.2")))]);
    put(&mut shelf, &[("a.yaml", &(router("a", "10.0.0.256") + &router("b", "10.0.0.3")))]);
    assert_eq!(addresses(shelf.objects()), [("a", "10.0.0.1"), ("b", "10.0.0.3")]);
    let told = only(shelf.objects());
    assert_eq!((&*told.kind, told.object.to_string().as_str(), told.status), ("GatewayRouter", "default/a", false));
    for word in ["a.yaml", "spec.address", "`10.0.0.256`", "must be an IPv4 or IPv6", "last good value stays"] {
        assert!(told.message.contains(word), "{}", told.message);
    }
    put(&mut shelf, &[("a.yaml", &router("b", "10.0.0.3"))]);
    assert_eq!(addresses(shelf.objects()), [("b", "10.0.0.3")], "removed is gone");
    put(&mut shelf, &[("a.yaml", &router("a", "10.0.0.256"))]);
    assert_eq!(addresses(shelf.objects()), [], "a value that was removed does not come back");
    assert!(only(shelf.objects()).message.contains("is not used"));
}

#[test]
fn an_object_that_moves_to_another_file_and_breaks_is_kept() {
    let mut shelf = Shelf::new("default");
    put(&mut shelf, &[("a.yaml", &router("a", "10.0.0.1"))]);
    put(&mut shelf, &[("b.yaml", &router("a", "nowhere"))]);
    assert_eq!(addresses(shelf.objects()), [("a", "10.0.0.1")]);
}

#[test]
fn the_same_object_twice_is_told_and_the_first_file_wins() {
    let mut shelf = Shelf::new("default");
    put(&mut shelf, &[("b.yaml", &router("a", "10.0.0.2")), ("a.yaml", &router("a", "10.0.0.1"))]);
    assert_eq!(addresses(shelf.objects()), [("a", "10.0.0.1")]);
    assert!(only(shelf.objects()).message.contains("b.yaml: the object is in a.yaml already"));
    put(&mut shelf, &[("a.yaml", &(router("a", "10.0.0.1") + &router("a", "10.0.0.2")))]);
    assert_eq!(addresses(shelf.objects()), [("a", "10.0.0.1")], "in one file: the first document");
    assert_eq!(&*only(shelf.objects()).reason, "Duplicate");
}

#[test]
fn lists_and_many_documents_are_read_and_other_kinds_are_not() {
    let mut shelf = Shelf::new("tenant");
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: s}\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: c}\n";
    let json = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "j", "namespace": "other"}}"#;
    put(
        &mut shelf,
        &[("a.yaml", &(list.to_owned() + &router("a", "10.0.0.1") + "---\n---\n# nothing\n")), ("b.json", json)],
    );
    let objects = shelf.objects();
    assert!(objects.conditions.is_empty(), "{:#?}", objects.conditions);
    let names: Vec<_> = objects.services.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["other/j", "tenant/s"]);
    assert_eq!(addresses(objects), [("a", "10.0.0.1")]);
}

#[test]
fn what_is_no_object_is_told_on_the_file() {
    for (text, word) in [
        ("just text", "a single value"),
        ("[1, 2]", "a list"),
        ("{kind: GatewayRouter}", "apiVersion and kind"),
        ("{apiVersion: v1, kind: Service, metadata: {name: 7}}", "metadata.name: `7`"),
        ("{apiVersion: v1, kind: Service, metadata: {}}", "metadata.name: ``"),
        ("{apiVersion: v1, kind: Service, metadata: {name: a, namespace: A}}", "metadata.namespace: `A`"),
        ("{apiVersion: v1, kind: List, items: 7}", "items: must be a list"),
    ] {
        let mut shelf = Shelf::new("default");
        put(&mut shelf, &[("a.yaml", &format!("{text}\n{}", router("b", "10.0.0.2")))]);
        assert_eq!(addresses(shelf.objects()), [("b", "10.0.0.2")], "{text}");
        let told = only(shelf.objects());
        assert!(&*told.kind == "File" && told.message.contains(word), "{told:?}");
    }
}

#[test]
fn a_wrong_type_or_version_is_named_with_its_field() {
    for (text, words) in [
        (router("a", "7"), vec!["spec.address", "write it in quotes"]),
        (router("a", "10.0.0.1") + "  bgp: {localPort: x}\n", vec!["spec.bgp.localPort", "x"]),
        (router("a", "10.0.0.1").replace("  address: 10.0.0.1", "  interface: x"), vec!["missing field `address`"]),
        (router("a", "10.0.0.1").replace("v1alpha1", "v1"), vec!["apiVersion", "v1alpha1"]),
    ] {
        let mut shelf = Shelf::new("default");
        put(&mut shelf, &[("a.yaml", &text)]);
        let told = only(shelf.objects());
        assert!(words.iter().all(|word| told.message.contains(word)), "{}", told.message);
    }
}

#[test]
fn a_message_about_a_secret_does_not_show_it() {
    let mut shelf = Shelf::new("default");
    put(&mut shelf, &[("a.yaml", "{apiVersion: v1, kind: Secret, metadata: {name: s}, data: {key: 'not-base64!'}}")]);
    let told = only(shelf.objects());
    assert!(told.message.contains("data.key") && !told.message.contains("base64!"), "{}", told.message);
    put(&mut shelf, &[("a.yaml", "kind: Secret\nstringData:\n  password: hunter2\n bad: x\n")]);
    assert!(!only(shelf.objects()).message.contains("hunter2"));
}

#[test]
fn a_field_that_nobody_knows_is_told_and_the_object_is_used() {
    let mut shelf = Shelf::new("default");
    put(&mut shelf, &[("a.yaml", &(router("a", "10.0.0.1") + "  bgp: {holdtime: 3s}\n"))]);
    assert_eq!(addresses(shelf.objects()), [("a", "10.0.0.1")]);
    assert!(only(shelf.objects()).message.contains("spec.bgp.holdtime"));
}

#[test]
fn bombs_and_floods_are_refused_without_harm_to_the_rest() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let alias = format!("*a{}", level - 1);
        writeln!(bomb, "a{level}: &a{level} [{}]", vec![alias; 10].join(", ")).unwrap();
    }
    let deep = "[".repeat(10_000);
    let documents = "---\nx: 1\n".repeat(20_001);
    let long = "#".repeat((8 << 20) + 1);
    for text in [bomb, deep, documents, long] {
        let mut shelf = Shelf::new("default");
        put(&mut shelf, &[("a.yaml", &text), ("b.yaml", &router("b", "10.0.0.2"))]);
        assert_eq!(addresses(shelf.objects()), [("b", "10.0.0.2")]);
        assert_eq!(only(shelf.objects()).object, ObjectName::new("", "a.yaml"));
    }
}

#[test]
fn routes_are_absent_only_where_no_file_has_one() {
    let mut shelf = Shelf::new("default");
    put(&mut shelf, &[("a.yaml", &router("a", "10.0.0.1"))]);
    assert_eq!(shelf.objects().absent, [Kind::L34Route].into());
    let broken =
        "{apiVersion: meridio.experiment.gateway.api.poc/v1alpha1, kind: L34Route, metadata: {name: a}, spec: {}}";
    put(&mut shelf, &[("a.yaml", broken)]);
    assert!(shelf.objects().routes.is_empty() && shelf.objects().absent.is_empty(), "a refused one is one");
}

#[test]
fn an_unreadable_folder_keeps_all() {
    let mut shelf = Shelf::new("default");
    put(&mut shelf, &[("a.yaml", &router("a", "10.0.0.1"))]);
    shelf.keep("/etc/martlet", "permission denied");
    assert_eq!(addresses(shelf.objects()), [("a", "10.0.0.1")]);
    assert!(only(shelf.objects()).message.contains("permission denied"));
    put(&mut shelf, &[]);
    assert_eq!(addresses(shelf.objects()), []);
    assert!(shelf.objects().conditions.is_empty());
}

proptest! {
    #[test]
    fn the_same_files_twice_are_no_change(addresses in prop::collection::vec("(10\\.0\\.0\\.[0-9]{1,4}|x)", 0..6)) {
        let mut shelf = Shelf::new("default");
        let text: String = addresses.iter().enumerate().map(|(n, address)| router(&format!("r{}", n % 4), address)).collect();
        put(&mut shelf, &[("a.yaml", &text)]);
        let once = shelf.objects().clone();
        // An object that was refused the first time has no last good value the second time either.
        put(&mut shelf, &[("a.yaml", &text)]);
        prop_assert_eq!(&once, shelf.objects());
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[ \\-a-z:{}\\[\\]&*|>'\"#\n]{0,200}") {
        let mut shelf = Shelf::new("default");
        put(&mut shelf, &[("a.yaml", &text)]);
    }
}
