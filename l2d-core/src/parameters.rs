//! Parameters of a module by name, to be saved and restored. A name is the path of field names from the module down, e.g.
//! `blocks.0.query.a`.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::error::Result;
use crate::lm::{HostTensor, host_values};

/// The path of field names down to the parameter being visited.
#[derive(Debug, Default, Clone)]
pub struct ParameterPath {
    segments: Vec<Option<String>>,
}

impl ParameterPath {
    /// Call from `enter_module`. An enum's variant is no segment: which variant it is stands in the config.
    pub fn enter(&mut self, name: &str, container_type: &str) {
        self.segments.push((!container_type.starts_with("Enum")).then(|| name.to_string()));
    }

    /// Call from `exit_module`.
    pub fn exit(&mut self) {
        self.segments.pop();
    }

    /// The name at this point.
    pub fn name(&self) -> String {
        self.segments.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(".")
    }
}

/// All float parameters of a module, on the host, in the module's own layout (`[in, out]` for a linear layer).
pub fn parameters<B: Backend, M: Module<B>>(module: &M) -> Vec<HostTensor> {
    collect(module, false)
}

/// [`parameters`] without the frozen ones.
pub fn trained_parameters<B: Backend, M: Module<B>>(module: &M) -> Vec<HostTensor> {
    collect(module, true)
}

/// Names of the parameters that are trained.
pub fn trained_parameter_names<B: Backend, M: Module<B>>(module: &M) -> Vec<String> {
    #[derive(Default)]
    struct Names {
        path: ParameterPath,
        found: Vec<String>,
    }
    impl<B: Backend> ModuleVisitor<B> for Names {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if param.val().is_require_grad() {
                self.found.push(self.path.name());
            }
        }
    }
    let mut names = Names::default();
    module.visit(&mut names);
    names.found
}

fn collect<B: Backend, M: Module<B>>(module: &M, only_trained: bool) -> Vec<HostTensor> {
    struct Collect {
        path: ParameterPath,
        only_trained: bool,
        found: Vec<HostTensor>,
    }
    impl<B: Backend> ModuleVisitor<B> for Collect {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let tensor = param.val();
            if self.only_trained && !tensor.is_require_grad() {
                return;
            }
            let shape = tensor.dims().to_vec();
            self.found.push(HostTensor { name: self.path.name(), shape, values: host_values(tensor) });
        }
    }
    let mut collect = Collect { path: ParameterPath::default(), only_trained, found: Vec::new() };
    module.visit(&mut collect);
    collect.found
}

/// Replaces every float parameter by what `read(name, shape)` returns, which must have that shape.
///
/// # Errors
/// The first error of `read`; the module is then lost, as its parameters are a mixture.
pub fn replace_parameters<B: Backend, M: Module<B>>(
    module: M,
    read: &mut dyn FnMut(&str, &[usize]) -> Result<Vec<f32>>,
) -> Result<M> {
    replace(module, false, read)
}

/// [`replace_parameters`] that leaves the frozen ones as they are.
///
/// # Errors
/// As there.
pub fn replace_trained_parameters<B: Backend, M: Module<B>>(
    module: M,
    read: &mut dyn FnMut(&str, &[usize]) -> Result<Vec<f32>>,
) -> Result<M> {
    replace(module, true, read)
}

fn replace<B: Backend, M: Module<B>>(
    module: M,
    only_trained: bool,
    read: &mut dyn FnMut(&str, &[usize]) -> Result<Vec<f32>>,
) -> Result<M> {
    struct Replace<'a> {
        path: ParameterPath,
        only_trained: bool,
        read: &'a mut dyn FnMut(&str, &[usize]) -> Result<Vec<f32>>,
        result: Result<()>,
    }
    impl<B: Backend> ModuleMapper<B> for Replace<'_> {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.enter(name, container_type);
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let (id, old, mapper) = param.consume();
            if self.result.is_err() || (self.only_trained && !old.is_require_grad()) {
                return Param::from_mapped_value(id, old, mapper);
            }
            let shape = old.dims();
            let new = match (self.read)(&self.path.name(), &shape) {
                Ok(values) => {
                    let new = Tensor::from_data(TensorData::new(values, shape), (&old.device(), old.dtype()));
                    if old.is_require_grad() { new.require_grad() } else { new }
                }
                Err(error) => {
                    self.result = Err(error);
                    old
                }
            };
            Param::from_mapped_value(id, new, mapper)
        }
    }
    let mut replace = Replace { path: ParameterPath::default(), only_trained, read, result: Ok(()) };
    let module = module.map(&mut replace);
    replace.result.map(|()| module)
}

/// Marks every float parameter as trained. Modules that came from an inner backend have forgotten whether they were.
pub fn trainable<B: Backend, M: Module<B>>(module: M) -> M {
    struct Mark;
    impl<B: Backend> ModuleMapper<B> for Mark {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let (id, tensor, mapper) = param.consume();
            Param::from_mapped_value(id, tensor.detach().require_grad(), mapper)
        }
    }
    module.map(&mut Mark)
}
