//! The tools that load rules, in the way of failing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

/// While it lives, the calling thread's `iptables-restore` fails on rules that have a word in them.
pub(crate) struct BrokenTools {
    program: PathBuf,
    _place: TempDir,
}

impl BrokenTools {
    pub(crate) fn failing_on(word: &str) -> Self {
        // Seen by this thread and what it starts only.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let mut named = std::env::split_paths(&path).map(|place| place.join("iptables-restore"));
        let program = named.find_map(|name| fs::canonicalize(name).ok()).unwrap();
        let place = tempfile::tempdir().unwrap();
        let [whole, broken] = ["whole", "broken"].map(|name| place.path().join(name));
        fs::copy(&program, &whole).unwrap();
        let whole = whole.display();
        fs::write(
            &broken,
            format!(
                "#!/bin/sh\nname=${{0##*/}}\ncase $name in *-restore) ;; *) exec {whole} $name \"$@\" ;; esac\n\
                 rules=$(cat)\ncase $rules in *{word}*) echo 'out of order' >&2; exit 1 ;; esac\n\
                 printf '%s\\n' \"$rules\" | {whole} $name \"$@\"\n"
            ),
        )
        .unwrap();
        fs::set_permissions(&broken, PermissionsExt::from_mode(0o755)).unwrap();
        mount(Some(&broken), &program, nothing, MsFlags::MS_BIND, nothing).unwrap();
        Self { program, _place: place }
    }
}

impl Drop for BrokenTools {
    fn drop(&mut self) {
        let program: &Path = &self.program;
        umount2(program, MntFlags::MNT_DETACH).unwrap();
    }
}
