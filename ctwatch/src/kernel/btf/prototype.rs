//! Prototypes of functions, written as C.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::{
    Btf, KIND_ARRAY, KIND_CONST, KIND_ENUM, KIND_ENUM64, KIND_FUNC_PROTO, KIND_FWD, KIND_PTR, KIND_RESTRICT,
    KIND_STRUCT, KIND_TYPE_TAG, KIND_UNION, KIND_VOLATILE, MAX_DEPTH, u32_at,
};

impl Btf<'_> {
    /// A function's prototype as C, or `None` where BTF does not have the function.
    pub fn prototype(&self, function: &str) -> Result<Option<String>> {
        let Some(id) = self.function(function)? else {
            return Ok(None);
        };
        let proto = self.get(self.get(id)?.word)?;
        ensure!(proto.kind == KIND_FUNC_PROTO, "BTF function {function} has no prototype");
        let mut text = declare(&self.type_name(proto.word, 0)?, function);
        text.push('(');
        for (index, parameter) in proto.rest.chunks_exact(8).enumerate() {
            if index > 0 {
                text.push_str(", ");
            }
            let (name, id) = (u32_at(parameter, 0)?, u32_at(parameter, 4)?);
            if name == 0 && id == 0 {
                text.push_str("...");
            } else {
                text.push_str(&declare(&self.type_name(id, 0)?, self.string(name)));
            }
        }
        if proto.count == 0 {
            text.push_str("void");
        }
        text.push(')');
        Ok(Some(text))
    }

    fn type_name(&self, id: u32, depth: u32) -> Result<String> {
        ensure!(depth < MAX_DEPTH, "BTF types refer to each other in a circle");
        if id == 0 {
            return Ok("void".into());
        }
        let found = self.get(id)?;
        let name = self.string(found.name);
        Ok(match found.kind {
            KIND_PTR => {
                let target = self.type_name(found.word, depth + 1)?;
                let space = if target.ends_with('*') { "" } else { " " };
                format!("{target}{space}*")
            }
            KIND_CONST => format!("const {}", self.type_name(found.word, depth + 1)?),
            KIND_VOLATILE => format!("volatile {}", self.type_name(found.word, depth + 1)?),
            KIND_RESTRICT | KIND_TYPE_TAG => self.type_name(found.word, depth + 1)?,
            KIND_STRUCT => format!("struct {name}"),
            KIND_UNION => format!("union {name}"),
            KIND_ENUM | KIND_ENUM64 => format!("enum {name}"),
            KIND_FWD => format!("{} {name}", if found.flag { "union" } else { "struct" }),
            KIND_FUNC_PROTO => "fn".into(),
            KIND_ARRAY => {
                let mut text = self.type_name(u32_at(found.rest, 0)?, depth + 1)?;
                write!(text, " [{}]", u32_at(found.rest, 8)?)?;
                text
            }
            _ => name.to_owned(),
        })
    }
}

fn declare(type_name: &str, name: &str) -> String {
    let space = if type_name.ends_with('*') || name.is_empty() { "" } else { " " };
    format!("{type_name}{space}{name}")
}
