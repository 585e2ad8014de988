//! `martlet lint` as a script meets it: its exit code, and one line a fault.

use std::path::Path;
use std::process::{Command, Output};

fn lint(dir: &Path) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_martlet")).arg("lint").arg(dir).output().expect("start martlet");
    let text = |octets: Vec<u8>| String::from_utf8_lossy(&octets).into_owned();
    (status.code(), text(stdout), text(stderr))
}

/// The folder of the demo without its endpoints, one of which is wrong on purpose; its gateway routers as `change` leaves them.
fn checked(name: &str, change: impl Fn(String) -> String) -> std::io::Result<(Option<i32>, String, String)> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo");
    let dir = std::env::temp_dir().join(format!("martlet-lint-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    for file in ["gateway.yaml", "service.yaml", "routes.yaml"] {
        std::fs::copy(demo.join(file), dir.join(file))?;
    }
    let text = std::fs::read_to_string(demo.join("gateway-routers.yaml"))?;
    std::fs::write(dir.join("gateway-routers.yaml"), change(text))?;
    let found = lint(&dir);
    std::fs::remove_dir_all(&dir)?;
    Ok(found)
}

#[test]
fn a_good_folder_ends_with_0() {
    let (code, said, _) = checked("good", |text| text).unwrap();
    assert_eq!((code, said.lines().count()), (Some(0), 1), "{said}");
    assert!(said.ends_with(": no fault\n"), "{said}");
}

#[test]
fn faults_end_with_1_and_each_line_names_object_field_and_value() {
    let (code, said, _) = checked("bad", |text| {
        text.replace("169.254.100.150", "169.254.100.1500").replace("holdTime: 24s", "holdTime: 2s")
    })
    .unwrap();
    assert_eq!(code, Some(1), "{said}");
    for (object, field, value) in [
        ("gateway-a-v4", "spec.address", "169.254.100.1500"),
        ("gateway-a-v4", "spec.bgp.holdTime", "2s"),
        ("gateway-a-v6", "spec.bgp.holdTime", "2s"),
    ] {
        let names_it = |line: &str| [object, field, value].iter().all(|word| line.contains(word));
        assert!(said.lines().any(names_it), "no line for {object} {field} {value}:\n{said}");
    }
}

#[test]
fn what_is_no_folder_ends_with_2_and_says_so() {
    let (code, said, error) = lint(Path::new("/nowhere"));
    assert_eq!((code, said.as_str()), (Some(2), ""));
    assert_eq!(error, "martlet: /nowhere: not a folder\n");
}
