//! Makes a release build follow the UI's files, which it embeds. Debug builds read them when asked (see `src/web.rs`).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("PROFILE").is_some_and(|profile| profile == "release") {
        println!("cargo::rerun-if-changed=../web/dist");
    }
}
