//! x
#[derive(Clone,Debug)] pub struct GeneratorConfig; pub async fn run(_:GeneratorConfig,_:engine::source::SourceContext){}
