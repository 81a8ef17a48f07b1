// SPDX-License-Identifier: Apache-2.0
//! What kernel modules bring: symbols and types of their own.

use crate::btf::{Btf, LEN_BYTES_MAX};
use crate::core::Core;
use crate::error::Fault;
use crate::memory::Gva;

/// Most modules walked.
const MODULES_MAX: usize = 4096;
/// Longest module name (`MODULE_NAME_LEN`).
const MODULE_NAME_BYTES: usize = 56;
/// Most symbols of one module looked at.
const SYMBOLS_MAX: u32 = 1 << 16;
/// A symbol of an object file (`Elf64_Sym`): its name's offset comes first, its value from byte 8 on.
const SYMBOL_BYTES: usize = 24;
/// Longest symbol name compared; the names that are looked for are shorter.
const SYMBOL_NAME_BYTES: usize = 64;

impl Core {
    /// The module that was loaded last: it heads the list.
    pub(crate) fn newest_module(&self) -> Result<Gva, Fault> {
        let head = self.anchors.symbols.find("modules");
        head.map_or(Ok(Gva::default()), |head| self.reader.pointer(head))
    }

    /// Whether the module `name` still is where it was.
    pub(crate) fn is_module(&self, module: Gva, name: &str) -> bool {
        let layout = self.layout.network.modules.as_ref();
        layout.is_some_and(|layout| {
            let found = self.reader.text(module.at(layout.module.name), MODULE_NAME_BYTES);
            found.is_ok_and(|found| found == name)
        })
    }

    /// The loaded module of that name.
    pub(crate) fn find_module(&self, name: &str) -> Result<Option<Gva>, Fault> {
        let (Some(layout), Some(head)) = (&self.layout.network.modules, self.anchors.symbols.find("modules"))
        else {
            return Ok(None);
        };
        for entry in self.list(head, MODULES_MAX)? {
            let module = entry.container(layout.module.list);
            if self.is_module(module, name) {
                return Ok(Some(module));
            }
        }
        Ok(None)
    }

    /// Where the named variables of a module lie; `None` unless it has them all.
    pub(crate) fn module_symbols<const N: usize>(
        &self,
        module: Gva,
        wanted: [&str; N],
    ) -> Result<Option<[Gva; N]>, Fault> {
        let Some(layout) = &self.layout.network.modules else { return Ok(None) };
        let symbols = self.reader.pointer(module.at(layout.module.symbols))?;
        let table = self.reader.pointer(symbols.at(layout.symbols.table))?;
        let names = self.reader.pointer(symbols.at(layout.symbols.names))?;
        let count = self.reader.u32(symbols.at(layout.symbols.count))?;
        if count > SYMBOLS_MAX {
            return Err(Fault::Inconsistent);
        }
        let mut bytes = vec![0; count as usize * SYMBOL_BYTES];
        self.reader.bytes(table, &mut bytes)?;
        let mut found = [None; N];
        for symbol in bytes.as_chunks::<SYMBOL_BYTES>().0 {
            let [n0, n1, n2, n3, ..] = *symbol;
            let name_at = u64::from(u32::from_le_bytes([n0, n1, n2, n3]));
            let name = self.reader.text(names.element(name_at, 1), SYMBOL_NAME_BYTES)?;
            if let Some(index) = wanted.iter().position(|wanted| *wanted == name) {
                let value = symbol[8..].first_chunk().copied().map(u64::from_le_bytes);
                found[index] = value.map(Gva);
                if let Some(all) = all(found) {
                    return Ok(Some(all));
                }
            }
        }
        Ok(None)
    }

    /// The kernel's types with those of the module `name`, which go on where the kernel's end.
    pub(crate) fn with_module_types(&self, kernel: &Btf, name: &str) -> Result<Option<Btf>, Fault> {
        let (Some(layout), Some(head)) = (&self.layout.modules, self.anchors.symbols.find("btf_modules"))
        else {
            return Ok(None);
        };
        for entry in self.list(head, MODULES_MAX)? {
            let module = entry.container(layout.module.list);
            let types = self.reader.pointer(module.at(layout.module.btf))?;
            if self.reader.text(types.at(layout.btf.name), MODULE_NAME_BYTES)? != name {
                continue;
            }
            let number = |offset| self.reader.u32(types.at(offset)).map(|number| number as usize);
            if number(layout.btf.start_id)? != kernel.type_count()
                || number(layout.btf.start_str_off)? != kernel.strings_bytes()
            {
                return Ok(None);
            }
            let len = number(layout.btf.data_size)?;
            if len > LEN_BYTES_MAX {
                return Ok(None);
            }
            let mut bytes = vec![0; len];
            self.reader.bytes(self.reader.pointer(types.at(layout.btf.data))?, &mut bytes)?;
            return Ok(kernel.with_module(&bytes).ok());
        }
        Ok(None)
    }
}

/// The array without its options, if all are there.
fn all<const N: usize>(found: [Option<Gva>; N]) -> Option<[Gva; N]> {
    found.iter().all(Option::is_some).then(|| found.map(Option::unwrap_or_default))
}
