# The Bash kernel: read by a lasting shell whose loop (see bash.py) evaluates one execution after the other.
#
# Descriptors, which no program gets: 200 the agent's channel, 201 where the state goes when the shell ends, 202 the code,
# 203-205 the true stdin, stdout and stderr. Everything here must bear whatever the user has set or
# redefined, hence `builtin` and no word splitting.

__kernel_id=
__kernel_restore=
__kernel_exit_trap=
__kernel_options=$(builtin set +o)

# EXIT is the kernel's; the user's trap for it runs at the end of the execution.
trap() {
  if ((BASH_SUBSHELL > 0)); then builtin trap "$@"; return; fi
  case ${1-} in
    -l | '') builtin trap "$@"; return ;;
    -p) [[ -z $__kernel_exit_trap ]] || builtin printf 'trap -- %q EXIT\n' "$__kernel_exit_trap"
        return ;;
    --) builtin shift ;;
  esac
  if (($# == 1)); then builtin set -- - "$@"; fi
  builtin local __kernel_action __kernel_signal
  __kernel_action=$1
  builtin shift
  for __kernel_signal; do
    case ${__kernel_signal^^} in
      EXIT | 0 | SIGEXIT)
        __kernel_exit_trap=
        if [[ $__kernel_action != - ]]; then __kernel_exit_trap=$__kernel_action; fi ;;
      *) builtin trap -- "$__kernel_action" "$__kernel_signal" ;;
    esac
  done
}

__kernel_return() { builtin return "$1"; }

__kernel_run_exit_trap() {
  builtin local __kernel_action
  __kernel_action=$__kernel_exit_trap
  __kernel_exit_trap=
  if [[ -n $__kernel_action ]]; then
    __kernel_return "$1"
    builtin eval "$__kernel_action"
  fi
}

# The end of an execution, and nothing before the first one: undo what must not reach the next one, and tell the agent.
__kernel_end() {
  if [[ -z $__kernel_id ]]; then builtin return 0; fi
  __kernel_run_exit_trap "$__kernel_status"
  builtin eval "$__kernel_options"
  builtin trap - TERM HUP QUIT PIPE USR1 USR2 DEBUG ERR RETURN
  builtin trap __kernel_save EXIT
  builtin trap "$__kernel_interrupt" INT
  builtin eval "$__kernel_restore"
  exec 0<&203 1>&204 2>&205 # with `builtin` before it, it would not last
  builtin local __kernel_text __kernel_head __kernel_size
  __kernel_text="{\"id\":$__kernel_id,\"ev\":\"done\",\"exit_code\":$__kernel_status}"
  builtin printf -v __kernel_head '\\x%02x' "${#__kernel_text}"
  builtin printf -v __kernel_size '\\x%02x' "$((${#__kernel_text} + 4))"
  __kernel_id=
  builtin printf "\\0\\0\\0$__kernel_size\\0\\0\\0$__kernel_head%s" "$__kernel_text" >&200
}

__kernel_next() {
  IFS= builtin read -r -u 200 __kernel_id || builtin return
  IFS= builtin read -r -d '' -u 202 __kernel_prelude
  IFS= builtin read -r -d '' -u 202 __kernel_code
  builtin return 0
}

# The shell ends, by `exit`, an error under `set -e`, or a signal: leave the state to the next one.
__kernel_save() {
  __kernel_status=$?
  { builtin trap - DEBUG ERR RETURN; builtin set +exuET; } >/dev/null 2>&1
  __kernel_run_exit_trap "$__kernel_status"
  builtin eval "$__kernel_restore"
  {
    builtin local __kernel_name
    # Through a file: this must work where no process can be made any more.
    builtin set +o posix +o noclobber
    builtin compgen -v >/proc/self/fd/202
    while IFS= builtin read -r __kernel_name; do
      case $__kernel_name in
        BASH* | EUID | UID | PPID | SHELLOPTS | DIRSTACK | FUNCNAME | GROUPS | LINENO | RANDOM | SRANDOM | SECONDS | \
          EPOCH* | PIPESTATUS | _ | __kernel_* | HISTCMD | COMP_* | SHLVL | PWD | OLDPWD) ;;
        *) builtin declare -p "$__kernel_name" ;;
      esac
    done </proc/self/fd/202
    builtin declare -f
    builtin alias -p
    builtin shopt -p
    builtin printf 'cd -- %q\n' "$PWD"
    builtin printf '# complete\n'
  } >&201 2>/dev/null
  builtin exit "$__kernel_status"
}

__kernel_interrupt='builtin exit 130'
builtin trap __kernel_save EXIT
builtin trap "$__kernel_interrupt" INT
