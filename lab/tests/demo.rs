//! The demo as a test: two at once, as two users would run it. Needs root, and the product (`MARTLET_BIN`, else `target/lab/martlet`).

use std::process::{Command, Stdio};

#[test]
fn two_demos_side_by_side_show_all_ten_steps() {
    let demos = [(); 2].map(|()| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_martlet-lab"));
        command.arg("demo").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    for demo in demos {
        let output = demo.wait_with_output().unwrap();
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}\n{said}\n{errors}", output.status);
        for number in 1..=10 {
            let line = format!("{number:>3}  ");
            assert!(said.lines().any(|said| said.starts_with(&line)), "no step {number} in:\n{said}");
        }
        println!("{said}");
    }
}
