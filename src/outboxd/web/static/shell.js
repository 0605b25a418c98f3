// Words of a command as a shell takes them: what is shown, selected and copied is one
// and the same text, and works pasted into bash, zsh and ksh.

import { shown } from './dom.js';

/** A word of a command line. What would drive a terminal, or deceive a reader, is spelt
 * out in the shell's own way: `$'…'`. */
export function quoted(word) {
  if (/^[\w@%+:,./-][\w@%+=:,./-]*$/.test(word)) return word;
  if (shown(word) === word && !/[\n\t]/.test(word)) return `'${word.replaceAll("'", "'\\''")}'`;
  const spelt = word.replace(/[\\']/g, '\\$&').replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0).toString(16);
    return code.length > 4 ? `\\U${code.padStart(8, '0')}` : `\\u${code.padStart(4, '0')}`;
  });
  return `$'${spelt}'`;
}
