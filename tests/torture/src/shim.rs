//! The library that makes file calls of a child fail (`shim/calls.c`), compiled where it is needed, and what it is told.
//!
//! Unlike a tracer it counts the calls of all threads together, costs next to nothing, and can do half of a write.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Its status where the shim ended it, as `calls.c` has it.
pub const ABORTED: i32 = 99;
const SOURCE: &str = include_str!("../shim/calls.c");
/// Classes of calls, as `calls.c` counts them.
const CLASSES: usize = 3;
const NUMBER_BYTES: usize = 8;
const TALLY_BYTES: usize = 264;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// EIO.
    Error,
    /// EIO, and of all calls after it.
    ErrorForGood,
    /// ENOSPC, after half of what was to be written.
    NoSpace,
    /// ENOSPC, and of all after it that need space.
    NoSpaceForGood,
    /// Half of it is written, and that is what it says.
    Short,
    /// The process is gone before it.
    Abort,
    /// The process is gone in the middle of it.
    AbortHalfway,
}

impl How {
    pub const ALL: [How; 7] =
        [How::Error, How::ErrorForGood, How::NoSpace, How::NoSpaceForGood, How::Short, How::Abort, How::AbortHalfway];

    pub fn is_abort(self) -> bool {
        matches!(self, How::Abort | How::AbortHalfway)
    }

    pub fn is_no_space(self) -> bool {
        matches!(self, How::NoSpace | How::NoSpaceForGood)
    }

    /// Which calls it can happen to: all, those that may need space, those that write.
    pub fn class(self) -> usize {
        match self {
            How::Error | How::ErrorForGood | How::Abort => 0,
            How::NoSpace | How::NoSpaceForGood => 1,
            How::Short | How::AbortHalfway => 2,
        }
    }

    /// As the shim is told: what, whether half of it is done, whether it is so from then on.
    fn told(self) -> (&'static str, bool, bool) {
        match self {
            How::Error => ("EIO", false, false),
            How::ErrorForGood => ("EIO", false, true),
            How::NoSpace => ("ENOSPC", true, false),
            How::NoSpaceForGood => ("ENOSPC", true, true),
            How::Short => ("SHORT", false, false),
            How::Abort => ("ABORT", false, false),
            How::AbortHalfway => ("ABORT", true, false),
        }
    }
}

/// A call that does not succeed: the how-manieth of those that it can happen to. None where that is 0.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    pub how: How,
    pub nth: u64,
}

/// What a child's calls came to.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Calls by class.
    pub counted: [u64; CLASSES],
    /// The first one that failed.
    pub failed: Option<String>,
}

/// The compiled library.
pub struct Shim {
    directory: TempDir,
}

impl Shim {
    /// Compiles it; says why where that is not possible.
    pub fn compile() -> Result<Shim, String> {
        let shim = Shim { directory: tempfile::tempdir().map_err(|error| error.to_string())? };
        let source = shim.directory.path().join("calls.c");
        fs::write(&source, SOURCE).map_err(|error| error.to_string())?;
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(shim.library()).arg(&source).arg("-ldl").stdin(Stdio::null());
        match cc.output() {
            Ok(output) if output.status.success() => Ok(shim),
            Ok(output) => Err(format!("cc: {}", String::from_utf8_lossy(&output.stderr))),
            Err(error) => Err(format!("cc: {error}")),
        }
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join("calls.so")
    }

    /// Puts it before a command. `tally` is where it counts calls on what lies below `root`.
    pub fn before(&self, command: &mut Command, root: &Path, tally: &Path, failure: Failure) {
        fs::write(tally, [0; TALLY_BYTES]).unwrap();
        let (how, half, sticky) = failure.how.told();
        let flag = |set: bool| if set { "1" } else { "0" };
        command
            .env("LD_PRELOAD", self.library())
            .env("CALLS_ROOT", root.canonicalize().unwrap())
            .env("CALLS_TALLY", tally)
            .env("CALLS_NTH", failure.nth.to_string())
            .env("CALLS_HOW", how)
            .env("CALLS_HALF", flag(half))
            .env("CALLS_STICKY", flag(sticky));
    }
}

impl Tally {
    pub fn read(path: &Path) -> Tally {
        let bytes = fs::read(path).unwrap();
        let number = |at: usize| u64::from_ne_bytes(*bytes[at * NUMBER_BYTES..].first_chunk().unwrap());
        let first = bytes[(CLASSES + 1) * NUMBER_BYTES..].split(|byte| *byte == 0).next().unwrap();
        let failed = (number(CLASSES) > 0).then(|| String::from_utf8_lossy(first).into_owned());
        Tally { counted: std::array::from_fn(number), failed }
    }
}
