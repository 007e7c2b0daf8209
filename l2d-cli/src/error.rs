//! What the command line says when something fails: the library's error, and what to do next.

use std::path::Path;
use std::process::ExitCode;

/// Any failure of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The request itself cannot be carried out.
    #[error("{0}")]
    Usage(String),
    /// The model, its files, its text.
    #[error(transparent)]
    Core(#[from] l2d_core::Error),
    /// Learning.
    #[error(transparent)]
    Train(l2d_train::TrainError),
    /// Decoding.
    #[error(transparent)]
    Infer(l2d_infer::Error),
    /// Scoring.
    #[error(transparent)]
    Eval(#[from] l2d_eval::Error),
    /// Running programs that a model wrote.
    #[error(transparent)]
    Sandbox(#[from] l2d_sandbox::Error),
    /// A file of the command's own.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A GPU backend finds nothing to compute on.
    #[error("no usable device for the backend `{backend}`: {said}")]
    Device {
        /// Its name.
        backend: &'static str,
        /// What its runtime said.
        said: String,
        /// What to look for.
        remedy: &'static str,
    },
    /// A device computes something else than it should.
    #[error(
        "this device computes {what} wrongly ({found} instead of {expected}): nothing it does can be trusted. Build without the \
         feature fusion, then without autotune (or set CUBECL_AUTOTUNE_LEVEL=minimal), update the driver, or use another \
         backend; --skip-self-check goes on all the same"
    )]
    WrongNumbers {
        /// What was computed.
        what: &'static str,
        /// What came out.
        found: f64,
        /// What flex computes.
        expected: f64,
    },
    /// All ranks know of it, and leave together.
    #[error(transparent)]
    Settled(Box<CliError>),
    /// Another rank says it.
    #[error("stopped with the other ranks")]
    Elsewhere,
    /// Nobody reads standard output any more.
    #[error("standard output was closed")]
    OutputClosed,
    /// A planned run needs more memory than there is.
    #[error("this run does not fit: {0}")]
    DoesNotFit(String),
    /// Stopped by the user.
    #[error("interrupted")]
    Interrupted,
}

impl From<l2d_train::TrainError> for CliError {
    fn from(error: l2d_train::TrainError) -> Self {
        match error {
            l2d_train::TrainError::Core(core) => Self::Core(core),
            l2d_train::TrainError::Interrupted => Self::Interrupted,
            other => Self::Train(other),
        }
    }
}

impl From<l2d_infer::Error> for CliError {
    fn from(error: l2d_infer::Error) -> Self {
        match error {
            l2d_infer::Error::Core(core) => Self::Core(core),
            other => Self::Infer(other),
        }
    }
}

impl CliError {
    /// An I/O failure at a path.
    pub(crate) fn io(path: impl AsRef<std::path::Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().display().to_string(), source }
    }

    /// Prints the message, and what the user can do about it. `who` has it, where there are several.
    pub(crate) fn print(&self, who: &str) {
        eprintln!("error: {who}{self}");
        if let Some(hint) = self.hint() {
            eprintln!("hint: {hint}");
        }
    }

    /// What the user can do about it, where that is not plain from the message.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        use l2d_core::Error;
        let error = match self {
            Self::Core(error) => error,
            Self::Device { remedy, .. } => return Some(*remedy),
            Self::Settled(error) => return error.hint(),
            Self::Infer(l2d_infer::Error::Context { .. }) => {
                return Some("shorten the prompt, or ask for fewer tokens with --max-tokens");
            }
            _ => return None,
        };
        match error {
            Error::AdapterMismatch { .. } => {
                Some("pass the base model the adapter was trained with as --model (`l2d inspect ADAPTER` names it)")
            }
            Error::MissingTensor { .. } | Error::ExtraTensor { .. } | Error::Shape { .. } => Some(
                "the weights do not belong to this config.json, or the download is incomplete; fetch the model again",
            ),
            Error::Config { key, .. } if matches!(key.as_str(), "noise_rescaling" | "flow_lora_alpha") => {
                Some("give --sigma and --alpha, or the run's settings as a JSON file with --config")
            }
            Error::Io { path, source } if looks_like_a_repository(path, source) => {
                Some("a model or data set of the Hugging Face hub is written hf://org/name")
            }
            Error::ChatTemplate(_) => {
                Some("use a model with a chat template, or feed a prompt as it is: l2d generate --raw")
            }
            _ => None,
        }
    }

    /// 130 after Ctrl-C as shells have it, 2 for a request that makes no sense, 1 for the rest.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Interrupted => ExitCode::from(130),
            Self::Settled(error) => error.exit_code(),
            Self::Usage(_)
            | Self::Sandbox(l2d_sandbox::Error::Mode(_))
            | Self::Infer(l2d_infer::Error::Parameter { .. } | l2d_infer::Error::Grid(_)) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Whether what was not found reads like `org/name`.
fn looks_like_a_repository(path: &Path, error: &std::io::Error) -> bool {
    let parts = || path.components().map(|part| matches!(part, std::path::Component::Normal(_)));
    error.kind() == std::io::ErrorKind::NotFound && parts().count() == 2 && parts().all(|plain| plain)
}
