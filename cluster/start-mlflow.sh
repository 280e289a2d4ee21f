#!/usr/bin/env bash
# Start MLflow on the head of a cluster, unless it answers already. The files for `ray up` run this each time.
#
#   start-mlflow.sh LISTEN ADDRESS ARTIFACTS [PORT]
#
#   LISTEN      where to listen: the head's address, or 0.0.0.0
#   ADDRESS     the head's address for the other nodes: the one name, besides those of loopback, that MLflow answers under
#   ARTIFACTS   a folder of the shared disk, or s3://bucket/folder
#
# The database is SQLite in ~/mlflow, on the head's own disk: SQLite's locks are not to be trusted on NFS. For a PostgreSQL
# server write a line into ~/mlflow/env on the head (chmod 600), so that the password stands nowhere else:
#
#   export MLFLOW_BACKEND_STORE_URI=postgresql://USER:PASSWORD@HOST/DATABASE
#
# After a change there: kill "$(cat ~/mlflow/pid)" on the head, and `ray up` again.
#
# The server asks for a user and a password: those of ~/.mlflow/credentials on the head, which MLflow's clients read as well, and
# which are made here where the file is missing.
set -euo pipefail

listen=$1 address=$2 artifacts=$3 port=${4:-5000}

answers() {
  curl --silent --fail --noproxy '*' --max-time 2 --output /dev/null "http://${listen/#0.0.0.0/127.0.0.1}:$port/health"
}

if answers; then exit 0; fi

mkdir -p ~/mlflow && chmod 700 ~/mlflow
if [[ $artifacts != *://* ]]; then mkdir -p "$artifacts"; fi
if [[ -f ~/mlflow/env ]]; then . ~/mlflow/env; fi
# By the environment: what stands on the command line can be read by all users of the machine.
export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-sqlite:///$HOME/mlflow/mlflow.db}
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true

credentials=~/.mlflow/credentials
random() { python3 -c 'import secrets; print(secrets.token_hex(16))'; }
value() { sed -n "s/^ *mlflow_tracking_$1 *= *//p" "$credentials"; }
if [[ ! -f $credentials ]]; then
  mkdir -p ~/.mlflow && chmod 700 ~/.mlflow
  rm -f ~/mlflow/users.db  # it holds an earlier password, which nobody knows any more
  (umask 077 && printf '[mlflow]\nmlflow_tracking_username = css-ray\nmlflow_tracking_password = %s\n' "$(random)" > "$credentials")
fi
MLFLOW_AUTH_ADMIN_USERNAME=$(value username)
MLFLOW_AUTH_ADMIN_PASSWORD=$(value password)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(random)
MLFLOW_AUTH_CONFIG_PATH=$(cd "$(dirname "$0")" && pwd)/mlflow-auth.ini
export MLFLOW_AUTH_ADMIN_USERNAME MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH

cd ~/mlflow
setsid nohup mlflow server --app-name basic-auth --host "$listen" --port "$port" --workers 1 --artifacts-destination "$artifacts" \
  --allowed-hosts "localhost:*,127.0.0.1:*,$address:$port" > ~/mlflow/log 2>&1 < /dev/null &
echo $! > ~/mlflow/pid

for _ in {1..240}; do
  if answers; then exit 0; fi
  if ! kill -0 "$!" 2> /dev/null; then break; fi
  sleep 0.5
done
echo "MLflow did not start; ~/mlflow/log ends with:" >&2
tail -n 20 ~/mlflow/log >&2
kill -- "-$!" 2> /dev/null || true
exit 1
