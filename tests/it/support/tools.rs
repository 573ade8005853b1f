//! What others made, for tests that ask it: installed once, beside the build.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use sha2::{Digest, Sha256};

/// How many folders were begun by this process.
static MADE: AtomicU32 = AtomicU32::new(0);

/// How often `npm ci` is tried: a registry may be away for a moment.
const NPM_ATTEMPTS_MAX: usize = 3;

/// A Python with these packages, as a requirements file names them. Without Python, or without a way
/// to get the packages, the test says so and is skipped.
pub fn python_with(name: &str, requirements: &str) -> Option<PathBuf> {
    let made = prepared(name, &[requirements.as_bytes()], |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        let file = folder.join("requirements.txt");
        fs::write(&file, requirements).map_err(|error| error.to_string())?;
        let install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r"];
        run(Command::new(folder.join("bin/python")).args(install).arg(file))
    });
    match made {
        Ok(folder) => Some(folder.join("bin/python")),
        Err(error) => {
            let packages = requirements.lines().next().unwrap_or_default();
            skip(&format!("python3 with venv, and packages ({packages} …), are needed: {error}"));
            None
        }
    }
}

/// Installs what the lock file of a folder names.
pub fn install(folder: &Path) -> Result<(), String> {
    let mut install = Command::new("npm");
    install.arg("ci").current_dir(folder);
    let mut result = run(&mut install);
    for _ in 1..NPM_ATTEMPTS_MAX {
        if result.is_err() {
            result = run(&mut install);
        }
    }
    result
}

/// A folder beside the build, made once for all that has the same key. It is made under another name
/// and renamed when it is whole: another test may be about the same.
pub fn prepared(
    name: &str,
    key: &[&[u8]],
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let mut hash = Sha256::new();
    for part in key {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    let hash = hash.finalize();
    let hash = u64::from_be_bytes(hash[..8].try_into().unwrap());
    let beside = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = beside.join(format!("{name}-{hash:016x}"));
    if folder.exists() {
        return Ok(folder);
    }
    // Two tests may make the same one at the same time, in this process or in others.
    let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    let under_way = beside.join(format!("{name}-{hash:016x}.{process}.{number}"));
    let made = make(&under_way);
    // Where another was first, its folder is as good.
    if made.is_ok() && fs::rename(&under_way, &folder).is_ok() {
        return Ok(folder);
    }
    let _ = fs::remove_dir_all(&under_way);
    made.and_then(|()| if folder.exists() { Ok(folder) } else { Err("it is gone".to_owned()) })
}

/// Runs a command, and tells what it says where it fails.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Whether a program is here. If it is not, the test says so and is skipped; with `CI` set only if
/// `CI_LACKS` names it.
pub fn is_here(program: &str, argument: &str) -> bool {
    let Err(error) = run(Command::new(program).arg(argument)) else { return true };
    let why = format!("{program} is needed: {error}");
    let lacks = std::env::vars().find(|(name, _)| name == "CI_LACKS");
    if lacks.is_some_and(|(_, lacks)| lacks.split(' ').any(|lacked| lacked == program)) {
        tell_skipped(&why);
    } else {
        skip(&why);
    }
    false
}

/// Says why a test does nothing; with `CI` set it has to do something.
pub fn skip(why: &str) {
    assert!(!std::env::vars().any(|(name, _)| name == "CI"), "{why}");
    tell_skipped(why);
}

fn tell_skipped(why: &str) {
    #[expect(clippy::print_stderr, reason = "says why a test did nothing")]
    {
        eprintln!("skipped: {why}");
    }
}
